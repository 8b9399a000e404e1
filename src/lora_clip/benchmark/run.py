"""One benchmark: make what is missing, measure every pattern and the ceilings, and gather the rows."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers

from lora_clip.benchmark.ceilings import Ceilings
from lora_clip.benchmark.collection import Collection, make
from lora_clip.benchmark.extras import decoding, large_photographs, memory, one_pass, start
from lora_clip.benchmark.measure import BenchmarkError, Pattern, measure
from lora_clip.benchmark.models import make_random
from lora_clip.benchmark.patterns import Material, ours, theirs
from lora_clip.benchmark.photographs import list_photographs
from lora_clip.benchmark.table import Row, rows
from lora_clip.errors import ConfigError
from lora_clip.io.process import cores

REPORT_IMAGES = 29_104
READ = 16 * 2**20


@dataclass(frozen=True)
class Plan:
    """What to measure: see the arguments of `lora-clip benchmark`."""

    shards: Path | None
    random: str
    base: Path | None
    adapter: Path | None
    work: Path
    subset: int | None
    seconds: float
    collection: Collection
    workers: Sequence[str]
    only: Sequence[str] | None
    repeats: int
    override: Sequence[str]
    large: int | None
    memory: bool
    one_pass: bool
    start: bool


@dataclass(frozen=True)
class Results:
    """What was found: the machine and versions in `about`, a row each pattern and ceiling, sentences in `notes`."""

    about: str
    model: str
    images: int
    rows: list[Row]
    notes: list[str]


def benchmark(plan: Plan) -> Results:
    """Measure it all. Raises ConfigError for what cannot be measured, BenchmarkError where a program fails."""
    material = prepare(plan)
    images = len(list_photographs(material.shards, plan.subset or sys.maxsize))
    if images < 2:
        raise ConfigError(f"{material.shards} holds {images} images in tars: at least 2 are needed for a rate")
    warm(material.shards)
    patterns = choose(plan, material)
    with tempfile.TemporaryDirectory(dir=plan.work) as folder:
        ceilings = find_ceilings(material, images)
        timings = measure(patterns, images, plan.seconds, plan.repeats, Path(folder))
        notes = extra(plan, material, images, Path(folder))
    model = plan.random if plan.base is None else f"{plan.base} + {plan.adapter}"
    return Results(about(images, model), model, images, rows(timings, ceilings, REPORT_IMAGES), notes)


def prepare(plan: Plan) -> Material:
    """The model and the collection, made where they are not there. Raises ConfigError."""
    if (plan.base is None) != (plan.adapter is None):
        raise ConfigError("give both --base and --adapter, or neither for a model with random weights")
    plan.work.mkdir(parents=True, exist_ok=True)
    if plan.base is None or plan.adapter is None:
        base, adapter = make_random(plan.work.resolve() / "models", plan.random)
    else:
        base, adapter = plan.base, plan.adapter
    return Material(base, adapter, plan.shards or make(plan.work.resolve() / "collection", plan.collection))


def choose(plan: Plan, material: Material) -> list[Pattern]:
    """The patterns that are asked for. Raises ConfigError for a name that is none."""
    patterns = [*theirs(material), *ours(material, plan.workers, plan.override)]
    if plan.only is None:
        return patterns
    if unknown := set(plan.only) - {pattern.name for pattern in patterns}:
        raise ConfigError(f"no such pattern: {', '.join(unknown)}; there are {sorted({p.name for p in patterns})}")
    return [pattern for pattern in patterns if pattern.name in plan.only]


def warm(shards: Path) -> None:
    """Read all tars once, so that storage is measured for none."""
    for path in shards.glob("*.tar"):
        with path.open("rb") as file:
            while file.read(READ):
                pass


def find_ceilings(material: Material, images: int) -> Ceilings:
    """The ceilings, from a process of their own."""
    command = [sys.executable, "-m", "lora_clip.benchmark.ceilings", "--base", str(material.base)]
    command += ["--adapter", str(material.adapter), "--shards", str(material.shards), "--limit", str(images)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return Ceilings(**json.loads(done.stdout))


def extra(plan: Plan, material: Material, images: int, scratch: Path) -> list[str]:
    """What else was asked for, a sentence each."""
    notes, folder = [], plan.work.resolve()
    if plan.large:
        notes.append(decoding(material, folder, plan.large, plan.seconds, plan.repeats, scratch))
    if plan.memory:
        notes.append(memory(material, images, scratch))
    if plan.one_pass:
        notes.append(one_pass(material, images, plan.seconds, plan.repeats, scratch))
        if plan.large:  # where decoding is what limits, whatever the model and the device
            large = replace(material, shards=large_photographs(folder, plan.large))
            what = "photographs of 12 megapixels"
            notes.append(one_pass(large, plan.large, plan.seconds, plan.repeats, scratch, what))
    if plan.start:
        notes.append(start(material, plan.repeats, scratch))
    return notes


def about(images: int, model: str) -> str:
    """The machine and the versions, in a line."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    machine = f"{cores()} cores of {processor()}, {', '.join(gpus) or 'no GPU'}"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{model} over {images:,} images; {machine}; {versions}"


def processor() -> str:
    """The CPU's name."""
    with Path("/proc/cpuinfo").open() as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.machine()
