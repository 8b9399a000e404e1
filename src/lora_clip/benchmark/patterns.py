"""The patterns of a benchmark: the report's, the peers' that are installed, and this job at several worker counts."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from lora_clip.benchmark.loops import POOL
from lora_clip.benchmark.measure import Pattern
from lora_clip.io.process import cores
from lora_clip.terminal import count_of

JOB = "this job"


@dataclass(frozen=True)
class Material:
    """What is embedded with what; folders."""

    base: Path
    adapter: Path
    shards: Path


def theirs(material: Material) -> list[Pattern]:
    """The report's variants and the peers; sentence-transformers only where it is installed."""
    gpus = torch.cuda.device_count()
    one, all_ = ("1 GPU", f"{gpus} GPUs" if gpus > 1 else "1 GPU") if gpus else ("CPU", "CPU")
    processes = f"{cores()} processes"
    columns = [
        ("one-at-a-time", one, "none"),
        ("batches-one-at-a-time", one, "none"),
        ("thread-pool", all_, f"{POOL} threads"),
        ("thread-pool-of-batches", all_, f"{POOL} threads"),
        ("data-loader", one, processes),
        ("sentence-transformers", one, "none"),
    ]
    return [
        Pattern(name, devices, workers, partial(_program, material, name))
        for name, devices, workers in columns
        if name != "sentence-transformers" or importlib.util.find_spec("sentence_transformers")
    ]


def _program(material: Material, name: str, images: int, output: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "lora_clip.benchmark.program", name),
        *("--base", str(material.base), "--adapter", str(material.adapter), "--shards", str(material.shards)),
        *("--limit", str(images), "--output", f"{output}.npy"),
    ]


def ours(
    material: Material, workers: Sequence[str], overrides: Sequence[str] = (), adapters: Sequence[Path] = ()
) -> list[Pattern]:
    """The job, a pattern for each worker count per rank; `auto` among them is the default.

    `adapters`: several, in one pass, in place of the material's.
    """
    gpus = torch.cuda.device_count()
    devices = count_of(gpus, "GPU") if gpus else "CPU"
    named = " ".join([JOB, *overrides, *([f"{len(adapters)} adapters"] if adapters else [])])
    adapter = f"[{','.join(map(str, adapters))}]" if adapters else str(material.adapter)
    settings = {f"{count} worker{'s' * (count != '1')}": f"data.num_workers={count}" for count in workers}
    return [
        Pattern(named, devices, told, partial(_job, material, adapter, (setting, *overrides)))
        for told, setting in settings.items()
    ]


def _job(material: Material, adapter: str, overrides: Sequence[str], images: int, output: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "lora_clip", "embed", "data=shards", f"data.shards={material.shards}"),
        *(f"model.base={material.base}", f"model.adapter={adapter}"),
        *(f"data.limit={images}", f"output_dir={output}", *overrides),
    ]
