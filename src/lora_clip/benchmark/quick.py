"""Two minutes that tell whether a change made the job slower: this checkout and another commit, in alternating runs."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import lora_clip
from lora_clip.benchmark.collection import Collection, make
from lora_clip.benchmark.digest import digest
from lora_clip.benchmark.measure import BenchmarkError
from lora_clip.benchmark.models import make_random
from lora_clip.benchmark.patterns import Material, ours
from lora_clip.errors import ConfigError
from lora_clip.terminal import align, count_of

IMAGES = 1_500
LEAST_PAIRS, MOST_PAIRS = 3, 31
T_975 = (
    *(12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13),
    *(2.12, 2.11, 2.10, 2.09, 2.09, 2.08, 2.07, 2.07, 2.06, 2.06, 2.06, 2.05, 2.05, 2.05, 2.04),
)
"""Student's t at 97.5 %, by degrees of freedom from 1 on."""


@dataclass(frozen=True)
class Whole:
    """A whole run: seconds by the clock, core-seconds of all its processes, seconds of prediction; its embeddings."""

    wall: float
    cpu: float
    predicting: float
    sha256: str


@dataclass(frozen=True)
class Ratio:
    """How many times as long one takes as the other, and between what that lies with 95 % confidence."""

    mean: float
    low: float
    high: float


def quick(work: Path, model: str, against: str | None, seconds: float, images: int = IMAGES) -> str:
    """Compare this checkout with the commit `against` for about so many seconds; returns what was found.

    Without `against`, that is where its branch left the main one, or the commit before. Raises ConfigError away from a
    checkout, BenchmarkError where a run fails.
    """
    checkout = find_checkout()
    commit = _git(checkout, "rev-parse", "--short", f"{against or default_commit(checkout)}^{{commit}}")
    base, adapter = make_random(work.resolve() / "models", model)
    material = Material(base, adapter, make(work.resolve() / f"quick-{images}", Collection(images)))
    with tempfile.TemporaryDirectory() as folder, worktree(checkout, commit, Path(folder) / "other") as other:
        pairs = _alternate(checkout, other, material, images, seconds, Path(folder) / "output")
    return describe(pairs, _git(checkout, "log", "-1", "--format=%h (%s)", commit), images)


def find_checkout() -> Path:
    """The checkout that this package is run from. Raises ConfigError where it is installed without one."""
    folder = Path(lora_clip.__file__).resolve().parents[2]
    if not (folder / ".git").exists() or not shutil.which("git"):
        raise ConfigError(
            f"--quick compares a git checkout with another commit of it, and {folder} is none: clone the repository "
            "and type it there. Without --quick the benchmark runs anywhere"
        )
    return folder


def default_commit(checkout: Path) -> str:
    """Where this branch left main, or, on main itself, the commit before."""
    head = _git(checkout, "rev-parse", "HEAD")
    for main in ("main", "origin/main"):
        found = subprocess.run(
            ["git", "-C", str(checkout), "merge-base", "HEAD", main], capture_output=True, text=True, check=False
        )
        if found.returncode == 0 and found.stdout.strip() != head:
            return found.stdout.strip()
    return "HEAD~1"


@contextmanager
def worktree(checkout: Path, commit: str, folder: Path) -> Iterator[Path]:
    """The files of a commit in a folder of their own, for as long as they are wanted."""
    _git(checkout, "worktree", "add", "--detach", str(folder), commit)
    try:
        yield folder
    finally:
        _git(checkout, "worktree", "remove", "--force", str(folder))


def _git(checkout: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"git {' '.join(arguments)} in {checkout}: {done.stderr.strip()}")
    return done.stdout.strip()


def _alternate(
    checkout: Path, other: Path, material: Material, images: int, seconds: float, output: Path
) -> list[tuple[Whole, Whole]]:
    """Pairs of runs, the first of each pair in turn: what else the machine does then falls on both."""
    for tree in (checkout, other):  # not counted: compiles its modules, and reads the images into memory
        whole_run(tree, material, min(images, 10), output)
    pairs: list[tuple[Whole, Whole]] = []
    began = time.perf_counter()
    while len(pairs) < LEAST_PAIRS or (time.perf_counter() - began < seconds and len(pairs) < MOST_PAIRS):
        order = (checkout, other) if len(pairs) % 2 == 0 else (other, checkout)
        found = {tree: whole_run(tree, material, images, output) for tree in order}
        pairs.append((found[checkout], found[other]))
        print(f"  pair {len(pairs)}: {pairs[-1][0].wall:.1f} s, {pairs[-1][1].wall:.1f} s", file=sys.stderr, flush=True)
    return pairs


def whole_run(tree: Path, material: Material, images: int, output: Path) -> Whole:
    """One whole job by the code of a checkout. Raises BenchmarkError where it fails."""
    shutil.rmtree(output, ignore_errors=True)
    command = [str(part) for part in ours(material, ["auto"])[0].command(images, output)]
    environment = {**os.environ, "PYTHONPATH": str(tree / "src")}
    with tempfile.TemporaryFile() as said:
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=tree, env=environment, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)  # taken here, with what it used
        if process.returncode:
            said.seek(0)
            text = said.read().decode("utf-8", "replace")[-2000:]
            raise BenchmarkError(f"{' '.join(command)} in {tree} ended with {process.returncode}:\n{text}")
    predicting = json.loads((output / "manifest.json").read_text())["run"]["predict_seconds"]
    return Whole(wall, usage.ru_utime + usage.ru_stime, predicting, digest(output, ["img_emb"]))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """How many times as long the first take as the second, pair by pair: a t interval of the logarithms' mean."""
    logarithms = [math.log(one / other) for one, other in zip(ours, theirs, strict=True)]
    mean, count = fmean(logarithms), len(logarithms)
    half = T_975[count - 2] * stdev(logarithms) / math.sqrt(count) if count > 1 else math.inf
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half) if half < math.inf else math.inf)


def describe(pairs: Sequence[tuple[Whole, Whole]], other: str, images: int) -> str:
    """What was found, in lines."""
    rows = [("", "this / other", "with 95 % confidence")]
    for name, words in (("wall", "wall time"), ("cpu", "CPU time"), ("predicting", "prediction alone")):
        found = ratio(*zip(*((getattr(one, name), getattr(two, name)) for one, two in pairs), strict=True))
        rows.append((words, f"{found.mean:.3f}", f"{found.low:.3f} to {found.high:.3f}"))
    same = len({whole.sha256 for pair in pairs for whole in pair}) == 1
    return "\n".join([
        f"this checkout against {other}, {count_of(len(pairs), 'pair')} of whole runs over {images:,} images:",
        *align(rows),
        "below 1 this checkout is faster; an interval that holds 1 shows no difference",
        f"embeddings: {'the same bytes' if same else 'other bytes'}",
    ])  # fmt: skip
