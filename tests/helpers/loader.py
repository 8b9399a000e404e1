"""Loaders without a job; as a script: a process that loads the tars of a folder and says who its workers are."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace
from typing import Any

import psutil
import torch

from lora_clip.loading.counters import SharedMemory
from lora_clip.loading.datamodule import PixelDataModule
from lora_clip.loading.plan import Plan, make_plan, take_inventory
from lora_clip.loading.queue import Indices
from lora_clip.models.preprocess import parse_spec
from lora_clip.sources.tar import TarSource

SPEC = parse_spec({"size": 16, "crop_size": 16})


def plan_of(source: TarSource, workers: int, batch_size: int, ranks: int = 1) -> Plan:
    """The plan for all that the source holds."""
    return make_plan(take_inventory(source), {}, ranks=ranks, workers=workers, batch_size=batch_size)


def modules(source: TarSource, plan: Plan, workers: int, batch_size: int) -> list[PixelDataModule]:
    """The DataModules of all ranks of a plan, which share its work."""
    counters = SharedMemory(len(Indices(plan)))
    found = []
    for rank in range(len(plan.runs)):
        made = PixelDataModule(source, SPEC, batch_size, workers)
        made.plan, made._counters, made.trainer = plan, counters, on_device("cpu", rank)
        found.append(made)
    return found


def module(source: TarSource, plan: Plan, workers: int, batch_size: int) -> PixelDataModule:
    """The DataModule of a job of one rank, its plan received."""
    (made,) = modules(source, plan, workers, batch_size)
    return made


def on_device(name: str, rank: int = 0) -> Any:
    """A stand-in for a Trainer that runs on a device of this kind."""
    return SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(name)), global_rank=rank)


if __name__ == "__main__":
    tars = TarSource(sys.argv[1])
    batches = iter(module(tars, plan_of(tars, 2, 16), 2, 16).predict_dataloader())
    next(batches)
    print(*(child.pid for child in psutil.Process().children()), flush=True)
    time.sleep(60)
