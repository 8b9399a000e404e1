"""Whole jobs, as a user types them, by the clock from the start of the process to its end."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lora_clip.benchmark.gpu import material
from lora_clip.benchmark.gpu.findings import Figure, Findings
from lora_clip.benchmark.gpu.sizes import Settings
from lora_clip.benchmark.measure import BenchmarkError
from lora_clip.io.process import cores

WHOLE, RATE, PREDICTING, START = "whole process", "whole process, rate", "predicting alone", "start"
AS_IT_COMES = "as it comes"


@dataclass(frozen=True)
class Job:
    """A job that ended well: its seconds by the clock, and what its manifest says of the run."""

    seconds: float
    run: dict[str, Any]

    @property
    def predicting(self) -> float:
        """Images/s from the first batch to the last, by its own account."""
        return float(self.run["images"] / max(self.run["predict_seconds"], 1e-9))


def small_model(settings: Settings, findings: Findings) -> None:
    """A job with the small model."""
    _tell(settings, findings, settings.sizes.small, settings.sizes.job)


def longer(settings: Settings, findings: Findings) -> None:
    """The same over more images: the difference of the two has no start in it."""
    _tell(settings, findings, settings.sizes.small, settings.sizes.long_job)


def large_model(settings: Settings, findings: Findings) -> None:
    """A job with the large model."""
    _tell(settings, findings, settings.sizes.large, settings.sizes.job)


def _tell(settings: Settings, findings: Findings, model: str, images: int) -> None:
    job = whole(settings, model, images)
    add = partial(findings.add, model=model, images=images)
    add(Figure(round(job.seconds, 2), "s", str(job.run["bottleneck"])), job=WHOLE)
    add(Figure(round(images / job.seconds, 1), "images/s"), job=RATE)
    add(Figure(round(job.predicting, 1), "images/s", f"{job.run['predict_seconds']:.1f} s"), job=PREDICTING)
    add(Figure(job.run["startup_seconds"], "s", "to the first batch through the model"), job=START)


def other_settings(settings: Settings, findings: Findings) -> None:
    """Shorter jobs with other workers, batch sizes, copies and dtypes, beside one as it comes."""
    half, (_, *others) = max(1, cores() // 2), settings.sizes.batches
    varied = [AS_IT_COMES, f"data.num_workers={half}", *(f"data.batch_size={batch}" for batch in others)]
    on_gpu = [f"data.num_workers={cores() + half}", "data.copies=direct", "model.dtype=bfloat16", AS_IT_COMES]
    varied += [] if settings.tiny else on_gpu
    for override in varied:
        given = [] if override == AS_IT_COMES else [override]
        model, images = settings.sizes.small, settings.sizes.varied
        findings.attempt(
            partial(_varied, settings, given), job=PREDICTING, model=model, images=images, setting=override
        )


def _varied(settings: Settings, overrides: list[str]) -> Figure:
    job = whole(settings, settings.sizes.small, settings.sizes.varied, *overrides)
    return Figure(round(job.predicting, 1), "images/s", f"{job.seconds:.1f} s in all")


def whole(settings: Settings, model: str, images: int, *overrides: str) -> Job:
    """A whole job. Raises BenchmarkError where it fails."""
    with scratch(settings) as output:
        began = time.perf_counter()
        run(settings, model, images, output, *overrides)
        seconds = time.perf_counter() - began
        return Job(seconds, json.loads((output / "manifest.json").read_text())["run"])


@contextmanager
def scratch(settings: Settings) -> Iterator[Path]:
    """A folder for an output, which is not kept."""
    output = settings.folder / "gpu-output"
    shutil.rmtree(output, ignore_errors=True)
    try:
        yield output
    finally:
        shutil.rmtree(output, ignore_errors=True)


def run(settings: Settings, model: str, images: int, output: Path, *overrides: str) -> None:
    """A job into a folder. Raises BenchmarkError where it fails."""
    process = start(settings, model, images, output, *overrides)
    _, said = process.communicate()
    if process.returncode:
        raise BenchmarkError(f"the job ended with {process.returncode}: {said[-1000:]}")


def start(
    settings: Settings, model: str, images: int, output: Path, *overrides: str, before: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    """A job on the first device, begun, in a process group of its own; `before` are words in front of its command."""
    base, adapter = material.model(settings, model)
    command = [
        *(*before, sys.executable, "-m", "lora_clip", "embed", "data=shards", "trainer.devices=1"),
        *(f"data.shards={material.shards(settings, images)}", f"model.base={base}", f"model.adapter={adapter}"),
        *(f"output_dir={output}", *overrides),
    ]
    none = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=none, stdout=none, stderr=subprocess.PIPE, text=True, process_group=0)
