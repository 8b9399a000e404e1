"""The job: plan, predict, verify, report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from lora_clip import launch
from lora_clip.data.datamodule import PixelDataModule
from lora_clip.data.pixels import PreprocessSpec, load_spec
from lora_clip.data.plan import Inventory, Plan, make_plan, take_inventory
from lora_clip.data.sources import Shard, Source, open_source
from lora_clip.errors import ConfigError, ModelError, OutputError, TooManyRejectsError
from lora_clip.model.checkpoint import Checkpoint, file_digest, find_checkpoint, weights_digest
from lora_clip.model.encoder import DTYPES, Normalisation, resolve_dtype
from lora_clip.model.module import ClipEmbedder
from lora_clip.observe import summary
from lora_clip.observe.monitor import Monitor
from lora_clip.observe.report import write_report
from lora_clip.output import record
from lora_clip.output.ledger import Piece, covers
from lora_clip.output.space import Space
from lora_clip.output.store import Store, part_of
from lora_clip.output.verify import Verdict, verify
from lora_clip.output.writer import EmbeddingWriter
from lora_clip.quiet import quiet_lightning


@dataclass(frozen=True)
class Model:
    """The model's side of a job: where it lies, how its pixels are made, in what dtype it computes and is saved."""

    checkpoint: Checkpoint
    spec: PreprocessSpec
    dtype: torch.dtype
    output_dtype: str

    @property
    def normalisation(self) -> Normalisation:
        """What is left of preprocessing for the device."""
        return Normalisation(self.spec.scale, self.spec.mean, self.spec.std)


def run(config: DictConfig) -> None:
    """Embed what is missing: plan -> predict -> verify -> report.

    Raises a LoraClipError for everything that the user can mend.
    """
    started = time.time()
    quiet_lightning()
    check(config)
    root = Path(config.output_dir).expanduser()
    monitor, writer = Monitor(root), EmbeddingWriter(root, config.max_reject_fraction)
    trainer = launch.build_trainer(OmegaConf.to_container(config.trainer), [monitor, writer])  # type: ignore[arg-type]
    model = find_model(config, trainer.strategy.root_device)
    source = open_source(config.data)
    workers = launch.resolve_workers(config.data.num_workers, trainer.num_devices)
    data = PixelDataModule(source, model.spec, config.data.batch_size, workers, None)
    embedder = ClipEmbedder(
        model.checkpoint, model.normalisation, model.dtype, DTYPES[model.output_dtype], config.model.compile
    )
    if launch.rank_of(trainer) > 0:
        trainer.predict(embedder, datamodule=data, return_predictions=False)
        trainer.strategy.barrier()
        return
    with Space(root, resume=config.resume) as space:
        job = plan(config, space, source, model, launch.ranks_of(trainer), workers)
        data.assign(job.plan)
        if job.plan.images or launch.torchrun_shape():
            embedder.announce = lambda adapter: print(summary.opening(job, adapter), flush=True)
            trainer.predict(embedder, datamodule=data, return_predictions=False)
            trainer.strategy.barrier()
        finish(job, space, monitor, started)
