"""Whole processes against the clock: what counts is the time between two sizes of run, so start-up cancels.

A pattern is run over more and more images until a run over four times as many takes `seconds` more; then the last two
sizes are run again, all patterns in turn, so that a noisy minute of the machine does not fall on one of them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from lora_clip.errors import LoraClipError

GROWTH = 4
SMALLEST = 50
NOISE = 0.05
"""The share of its time by which a whole process may well vary from run to run."""


class BenchmarkError(LoraClipError):
    """A program under measurement failed."""


@dataclass(frozen=True)
class Pattern:
    """A way to embed: the columns of its row, and the command that does it over the first `limit` images."""

    name: str
    devices: str
    workers: str
    command: Callable[[int, Path], Sequence[str]]
    """The command for a number of images and a file or folder to write."""


@dataclass
class Timing:
    """The seconds of whole runs, by their number of images."""

    pattern: Pattern
    seconds: dict[int, list[float]] = field(default_factory=dict)

    @property
    def sizes(self) -> tuple[int, int]:
        """The two numbers of images that the rate comes from."""
        small, large = sorted(self.seconds)[-2:]
        return small, large

    @property
    def rate(self) -> float | None:
        """Marginal images/s, from the medians of both sizes; None where these differ by no more than noise."""
        small, large = self.sizes
        longer = median(self.seconds[large]) - median(self.seconds[small])
        return (large - small) / longer if longer > NOISE * median(self.seconds[large]) else None

    def whole(self, images: int) -> float | None:
        """Seconds of a whole process over so many images, by the same line; its start takes no less than nothing."""
        if self.rate is None:
            return None
        small, _ = self.sizes
        return max(0.0, median(self.seconds[small]) - small / self.rate) + images / self.rate


def measure(patterns: Sequence[Pattern], most: int, seconds: float, repeats: int, scratch: Path) -> list[Timing]:
    """The timings of all patterns, over at most `most` images. Raises BenchmarkError."""
    timings = [_grow(pattern, most, seconds, scratch) for pattern in patterns]
    for _ in range(repeats - 1):
        for timing in timings:
            for size in timing.sizes:
                timing.seconds[size].append(run(timing.pattern, size, scratch))
    return timings


def _grow(pattern: Pattern, most: int, seconds: float, scratch: Path) -> Timing:
    """Runs of growing size, until one takes long enough beyond the one before it."""
    size = min(SMALLEST, max(1, most // GROWTH))
    timing = Timing(pattern, {size: [run(pattern, size, scratch)]})
    longest = 0.0
    while size < most and longest < seconds:
        before, size = timing.seconds[size][0], min(GROWTH * size, most)
        timing.seconds[size] = [run(pattern, size, scratch)]
        longest = timing.seconds[size][0] - before
    return timing


def run(pattern: Pattern, images: int, scratch: Path) -> float:
    """Seconds of one whole process. Raises BenchmarkError where it fails."""
    output = scratch / "output"
    shutil.rmtree(output, ignore_errors=True)
    output.unlink(missing_ok=True)
    command = [str(part) for part in pattern.command(images, output)]
    print(f"  {pattern.name}, {pattern.workers}: {images:,} images …", end="", file=sys.stderr, flush=True)
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    passed = time.perf_counter() - started
    print(f" {passed:.1f} s", file=sys.stderr, flush=True)
    if done.returncode:
        raise BenchmarkError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return passed
