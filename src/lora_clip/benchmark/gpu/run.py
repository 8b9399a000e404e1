"""The steps one after the other, each in a process of its own with its own limit, whatever happens to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import psutil

from lora_clip.benchmark.gpu import table
from lora_clip.benchmark.gpu.bars import verdicts
from lora_clip.benchmark.gpu.findings import CUT, FAILED, NOT_RUN, RUNNING, Result
from lora_clip.benchmark.gpu.sizes import Settings
from lora_clip.benchmark.gpu.steps import STEPS, Step
from lora_clip.errors import ConfigError
from lora_clip.io.atomic import write_text
from lora_clip.terminal import count_of

NOT_REACHED = "not reached yet"


def benchmark_gpu(settings: Settings, minutes: float, steps: Sequence[Step] = STEPS) -> str:
    """Run the steps within so many minutes; returns what a person reads of it.

    Each writes a file below WORK/gpu; WORK/gpu.json and gpu.md, with all, are written anew after each of them. Raises
    ConfigError where there is no GPU to measure.
    """
    if settings.device.type != "cuda" and not settings.tiny:
        raise ConfigError(
            "--gpu measures a GPU, and PyTorch finds none here (torch.cuda.is_available() is false). "
            "--gpu --tiny tries the command on the CPU, with models and images so few that its figures tell nothing"
        )
    settings.folder.mkdir(parents=True, exist_ok=True)
    end, results = time.monotonic() + 60 * minutes, [_waiting(step) for step in steps]
    _clear(settings.folder / "gpu")
    for number, step in enumerate(steps):
        results[number] = _run(step, steps[number:], _file(settings, number, step), settings, end - time.monotonic())
        _save(settings, results)
    return table.text(results, verdicts(results), settings.tiny)


def _waiting(step: Step) -> Result:
    return Result(step.name, step.title, NOT_RUN, NOT_REACHED)


def _file(settings: Settings, number: int, step: Step) -> Path:
    return settings.folder / "gpu" / f"{number + 1:02d}-{step.name}.json"


def _clear(folder: Path) -> None:
    """Take away what an earlier benchmark told."""
    folder.mkdir(exist_ok=True)
    for path in (*folder.glob("*.json"), *folder.glob("*.log")):
        path.unlink()


def _save(settings: Settings, results: Sequence[Result]) -> None:
    bars = verdicts(results)
    plain = {"tiny": settings.tiny, "steps": [asdict(one) for one in results], "bars": [asdict(one) for one in bars]}
    write_text(settings.folder / "gpu.json", json.dumps(plain, indent=1) + "\n")
    write_text(settings.folder / "gpu.md", table.markdown(results, bars, settings.tiny))


def limit_of(step: Step, to_come: Sequence[Step], left: float) -> float | None:
    """The seconds that a step may take of those left, as its share is among those `to_come`; None: it does not fit."""
    if left < step.least:
        return None
    return max(step.least, left * step.share / sum(one.share for one in to_come))


def _run(step: Step, to_come: Sequence[Step], path: Path, settings: Settings, left: float) -> Result:
    """One step, from its start to whatever end."""
    if (limit := limit_of(step, to_come, left)) is None:
        result = replace(_waiting(step), why=f"{max(0.0, left):.0f} s left, and it takes {step.least:.0f} at least")
        result.write(path)
    else:
        print(f"  {step.name}: {step.title}, up to {limit:.0f} s …", end="", file=sys.stderr, flush=True)
        Result(step.name, step.title, RUNNING, limit=round(limit, 1)).write(path)
        result = _watch(step, path, settings, limit)
        result.write(path)
        print(f" {_ended(result)}", file=sys.stderr, flush=True)
    return result


def _ended(result: Result) -> str:
    said = f": {result.why}" if result.why else ""
    return f"{result.status}{said}, {result.seconds:.1f} s, {count_of(len(result.rows), 'figure')}"


def _watch(step: Step, path: Path, settings: Settings, limit: float) -> Result:
    """The step's file once its process has ended, or was ended at its limit."""
    command = [sys.executable, "-m", "lora_clip.benchmark.gpu.child", step.function, str(path), settings.to_json()]
    began, status = time.monotonic(), None
    # kernels that an earlier run compiled would hide what compiling costs
    environment = {**os.environ, "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    with path.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            with suppress(subprocess.TimeoutExpired):
                status = process.wait(limit)
        finally:
            _end(process)
    return replace(_told(path, status, limit), seconds=round(time.monotonic() - began, 1))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process with all that it has started, and what these have."""
    started: list[psutil.Process] = []
    if process.poll() is None:
        with suppress(psutil.Error):
            started = psutil.Process(process.pid).children(recursive=True)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for one in started:
        with suppress(psutil.Error):
            one.kill()
    process.wait()


def _told(path: Path, status: int | None, limit: float) -> Result:
    """What the file tells; of a process that did not come to tell its end, what became of it."""
    result = Result.read(path)
    if result.status != RUNNING:
        return result
    if status is None:
        return replace(result, status=CUT, why=f"at its limit of {limit:.0f} s")
    lines = path.with_suffix(".log").read_text("utf-8", "replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "nothing was said")
    return replace(result, status=FAILED, why=f"ended with {status}: {last.strip()[:200]}")
