"""The Trainer for wherever the job was started: ranks that share only the plan, and cores divided once."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, ClassVar

import pytest
import torch
from omegaconf import OmegaConf

from lora_clip.app import launch
from lora_clip.io import process
from lora_clip.io.process import cores

CONFIG = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "profiler": None}


def trainer(**changes: Any) -> Any:
    return launch.build_trainer(OmegaConf.create(CONFIG | changes), [])


# --- Ranks ---


class TwoGpus:
    """As much of CUDA as a Trainer asks before any work is done."""

    joined: ClassVar[list[tuple[Any, dict[str, Any]]]] = []

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.joined.clear()
        for name, answer in (("is_available", True), ("device_count", 2), ("set_device", None)):
            monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
        monkeypatch.setattr(torch.distributed, "init_process_group", self.join)

    def join(self, backend: str, **more: Any) -> None:
        self.joined.append((backend, more))


@pytest.mark.parametrize("strategy", ["auto", "ddp"])
@pytest.mark.parametrize("devices", [2, "auto"])
def test_ranks_with_gpus_meet_over_gloo(strategy: str, devices: int | str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = TwoGpus(monkeypatch)
    for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    built = trainer(accelerator="cuda", devices=devices, strategy=strategy)
    assert built.strategy.root_device == torch.device("cuda", 0) and built.num_devices == 2
    built.strategy.setup_distributed()
    ((backend, more),) = gpus.joined
    assert backend == "gloo" and more["world_size"] == 2
    assert more["timeout"] >= timedelta(days=1), "a slow rank is no error"


def test_one_rank_meets_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not isinstance(trainer().strategy, launch.RanksApart)
    TwoGpus(monkeypatch)
    assert not isinstance(trainer(accelerator="cuda").strategy, launch.RanksApart)


# --- Cores ---


def test_cores_where_no_process_is_bound_to_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores() == os.cpu_count()


def test_cores_are_those_that_the_process_is_bound_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 5, 7}, raising=False)
    assert cores() == 3


@pytest.mark.parametrize(
    ("seen", "slurm", "ranks", "workers"),
    [
        (8, None, 1, 8),
        (32, None, 4, 8),  # torchrun, Lightning: all ranks see all cores
        (8, 32, 4, 8),  # the README's: srun bound 8 of the node's 32 to each of 4 tasks
        (32, 32, 4, 8),  # SLURM without binding
        (6, 6, 1, 6),
        (2, None, 4, 1),
        (128, None, 1, 64),
        (128, None, 2, 64),
        (192, None, 8, 24),
    ],
)
def test_a_rank_gets_its_share_of_the_cores_as_workers(
    seen: int, slurm: int | None, ranks: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "cores", lambda: seen)
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)
    if slurm is not None:
        monkeypatch.setenv("SLURM_CPUS_ON_NODE", str(slurm))
    assert launch.resolve_workers("auto", ranks) == workers
    assert launch.resolve_workers(3, ranks) == 3
