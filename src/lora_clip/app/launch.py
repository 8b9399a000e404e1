"""The Trainer, set up for wherever the job was started: plainly, by Lightning's launcher, by torchrun, by SLURM."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import hydra
import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig, OmegaConf

from lora_clip.app.exits import on_sigterm
from lora_clip.app.meeting import meet, under_torchrun
from lora_clip.errors import ConfigError
from lora_clip.extras import how_to_install
from lora_clip.io.process import node_cores
from lora_clip.loading.datamodule import PixelDataModule
from lora_clip.models.compute import auto_batch_size

AUTO = "auto"
# No device needs more: ViT-B/32 on an H100 takes at most some 34,000 images/s, a core decodes 500. And every worker
# costs memory: four batches in the ring, 154 MB at 256 images of 224 pixels.
MAX_WORKERS = 64
LOGGER_PACKAGES = {"TensorBoardLogger": "tensorboard", "WandbLogger": "wandb", "MLFlowLogger": "mlflow"}
PATIENCE = timedelta(days=7)
"""How long ranks wait for one another at the end: a dead rank is noticed by its launcher, a slow one is no error."""

SECONDS_BETWEEN_LOOKS = 0.01


class RanksApart(DDPStrategy):
    """DDP for a prediction: ranks meet over gloo, for the plan, at a few barriers and at the end, and nowhere else.

    NCCL would hold memory on every GPU, and keep a core busy for as long as one rank waits for another at the end.
    """

    def __init__(self) -> None:
        super().__init__(process_group_backend="gloo", timeout=PATIENCE)

    def setup_distributed(self) -> None:
        """Let the ranks meet; Lightning leaves a process group that is there as it is."""
        if under_torchrun() and not torch.distributed.is_initialized():
            meet(PATIENCE)
        super().setup_distributed()

    def barrier(self, *_: Any, **__: Any) -> None:
        """Wait for the other ranks, with an ear for signals: within torch they would be heard when all is over."""
        if not torch.distributed.is_initialized():
            return
        waiting = torch.distributed.barrier(async_op=True)
        while not waiting.is_completed():
            time.sleep(SECONDS_BETWEEN_LOOKS)
        waiting.wait()

    def setup(self, trainer: pl.Trainer) -> None:
        """Leave the weights alone: all ranks read the same files, but Lightning would send rank 0's to the others."""
        assert self.model is not None
        states = itertools.chain(self.model.named_parameters(), self.model.named_buffers())
        self.model._ddp_params_and_buffers_to_ignore = [name for name, _ in states]  # type: ignore[assignment]
        super().setup(trainer)


class Interruption(Callback):
    """SIGTERM ends a prediction at once; Lightning's own handler would broadcast, and hang where one rank got it."""

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signal back from Lightning, which has just taken it."""
        signal.signal(signal.SIGTERM, on_sigterm)


def build_trainer(config: DictConfig, callbacks: Sequence[Callback]) -> pl.Trainer:
    """A Trainer for prediction from the `trainer` group; under torchrun, devices and nodes are those it started.

    Raises ConfigError where Lightning refuses the arguments.
    """
    arguments = {**plain(config), **torchrun_shape()}
    distributed = arguments["num_nodes"] != 1 or arguments["devices"] not in (1, "1", "auto") or _many_gpus(arguments)
    if arguments["strategy"] == "ddp" or (arguments["strategy"] == "auto" and distributed):
        arguments["strategy"] = RanksApart()
    try:
        return pl.Trainer(
            **arguments,
            callbacks=[*callbacks, Interruption()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,  # the monitor has one over all ranks
            enable_model_summary=False,
            use_distributed_sampler=False,  # the plan says who does what
            inference_mode=True,
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"the trainer refuses its arguments: {str(error).splitlines()[0]}") from error


def open_logger(config: DictConfig) -> Logger | None:
    """The logger of the `logger` group; None where there is none.

    Raises ConfigError where its package is not installed, or it refuses its arguments.
    """
    if config.get("logger") is None:
        return None
    name = str(config.logger.get("_target_")).rpartition(".")[2]
    try:
        logger = hydra.utils.instantiate(config.logger)
        _ = logger.experiment if hasattr(type(logger), "experiment") else None  # what cannot be reached is told now
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, ModuleNotFoundError):
            package = LOGGER_PACKAGES.get(name, cause.name or "what it needs")
            raise ConfigError(f"{name}: {package} is not installed: type {how_to_install(package)}") from error
        raise ConfigError(f"{name} cannot be opened: {str(cause).strip()}") from error
    if not isinstance(logger, Logger):
        raise ConfigError(f"logger: {name} is none of Lightning's loggers: give one of conf/logger/")
    return logger


def plain(config: DictConfig) -> dict[str, Any]:
    """A group of the configuration as a dictionary of plain values."""
    return {str(key): value for key, value in OmegaConf.to_container(config, resolve=True).items()}  # type: ignore[union-attr]


def _many_gpus(arguments: Mapping[str, Any]) -> bool:
    on_gpu = arguments["accelerator"] in ("auto", "gpu", "cuda")
    return bool(on_gpu and arguments["devices"] == "auto" and torch.cuda.device_count() > 1)


def torchrun_shape() -> dict[str, Any]:
    """`devices` and `num_nodes` as torchrun started them; empty elsewhere.

    Raises ConfigError where the nodes have unequal numbers of processes, which Lightning cannot number.
    """
    if not under_torchrun():
        return {}
    world, devices, nodes = (int(os.environ[name]) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"))
    if world != devices * nodes:
        raise ConfigError(
            f"torchrun started {world} processes on {nodes} nodes, {devices} of them here: "
            "give every node the same --nproc_per_node"
        )
    return {"devices": devices, "num_nodes": nodes}


def predict(trainer: pl.Trainer, model: pl.LightningModule, data: PixelDataModule) -> None:
    """Predict on this rank, then wait for the others. An error here ends the ranks that Lightning launched as well."""
    try:
        # without return_predictions=False every embedding would stay in memory
        trainer.predict(model, datamodule=data, return_predictions=False)
        trainer.strategy.barrier()
    except BaseException:
        if trainer.strategy.launcher is not None and hasattr(trainer.strategy.launcher, "kill"):
            trainer.strategy.launcher.kill(signal.SIGKILL)
        raise
    finally:
        data.leave()


def rank_of(trainer: pl.Trainer) -> int:
    """The global rank of this process; known before the process group is up."""
    return trainer.node_rank * trainer.num_devices + trainer.local_rank


def ranks_of(trainer: pl.Trainer) -> int:
    """How many ranks the job has."""
    return trainer.num_nodes * trainer.num_devices


def is_waited_for(trainer: pl.Trainer) -> bool:
    """Whether other ranks run already, started by torchrun, SLURM or on another node: they wait for this one's plan."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return trainer.num_nodes > 1 or (environment is not None and environment.creates_processes_externally)


def resolve_batch_size(batch_size: int | str, device: torch.device) -> int:
    """Images per device and batch: as given; `auto` is what keeps a device of this kind busy, whatever the machine."""
    if batch_size == AUTO:
        return auto_batch_size(device.type)
    return int(batch_size)


def resolve_workers(num_workers: int | str, local_ranks: int) -> int:
    """Decoding processes per rank: as given; `auto`: the rank's share of the node's cores."""
    if num_workers != AUTO:
        return int(num_workers)
    return max(1, min(MAX_WORKERS, node_cores(local_ranks) // local_ranks))
