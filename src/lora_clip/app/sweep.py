"""Sweeps (`-m`): every point in a fresh process and a folder of its own; then a table, a plot, the best."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lora_clip.io.addresses import redacted_text
from lora_clip.io.atomic import write_text
from lora_clip.output.manifest import read_manifest
from lora_clip.report.charts import Column, side_by_side
from lora_clip.terminal import align, command

OUT_OF_MEMORY_STATUS = (12, -9)
"""The job's own exit status for it, and the kernel's way of saying it."""
RANK_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED")
AS_FAST = 0.98
"""Points from this share of the highest rate on count as as fast: two runs of one point differ by as much."""
ENOUGH_SECONDS = 5.0
BATCH_SIZE = "data.batch_size="
PANELS = ("images per second", "peak memory, MiB")


@dataclass(frozen=True)
class Point:
    """A point of a sweep and what came of it.

    Rates in images/s, `waiting_share` of the time for data, peak memory in bytes (the device's, on a CPU a rank's),
    `predict_seconds` without start-up; `overrides` is what was typed for it.
    """

    name: str
    batch_size: int | str
    state: str
    images_per_second: float | None = None
    waiting_share: float | None = None
    peak_bytes: int | None = None
    predict_seconds: float | None = None
    bottleneck: str = ""
    overrides: tuple[str, ...] = ()


def run_point(overrides: Sequence[str], name: str, output_dir: Path, batch_size: int | str) -> Point:
    """Run one point as `lora-clip embed` of its own, with `output_dir`/`name` as its folder."""
    folder = output_dir / name
    kept = [override for override in overrides if not override.startswith("output_dir=")]
    print(f"\n{name}", flush=True)
    line = [sys.executable, "-m", "lora_clip", "embed", *kept, f'output_dir="{folder}"']
    environment = {key: value for key, value in os.environ.items() if key not in RANK_VARIABLES}
    status = subprocess.run(line, env=environment, check=False).returncode
    return read_point(folder, name, batch_size, status, overrides)


def name_points(job_overrides: Sequence[Sequence[str]]) -> list[str]:
    """A folder name for each point: the overrides in which the points differ (all, where there is one point)."""
    shared = set(job_overrides[0]).intersection(*job_overrides) if len(job_overrides) > 1 else set()
    return [
        ",".join(redacted_text(override).replace("/", "_") for override in overrides if override not in shared)
        or "point"
        for overrides in job_overrides
    ]


def read_point(folder: Path, name: str, batch_size: int | str, status: int, overrides: Sequence[str] = ()) -> Point:
    """What came of a point, from its exit status and its manifest."""
    typed = tuple(overrides)
    if status in OUT_OF_MEMORY_STATUS:
        return Point(name, batch_size, "out of memory", overrides=typed)
    if status != 0:
        return Point(name, batch_size, f"failed ({status})", overrides=typed)
    run = _run_of(folder)
    peak = run["peak_device_bytes"] or run["peak_host_bytes"]
    rate, waiting = run["images_per_second"], run["waiting_share"]
    resolved = run["batch_size"]
    return Point(name, resolved, "done", rate, waiting, peak, run["predict_seconds"], run["bottleneck"], typed)


def _run_of(folder: Path) -> dict[str, Any]:
    """The record of a point's run; several adapters have an output each below, which all keep the same record."""
    outputs = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    return next(manifest["run"] for output in outputs if (manifest := read_manifest(output)) is not None)


def finish(folder: Path, points: Sequence[Point]) -> None:
    """Print the table and the best point, keep sweep.json and sweep.svg; nothing is left where nothing was embedded."""
    print("\n" + table(points), flush=True)
    if best := best_point(points):
        write_text(folder / "sweep.json", json.dumps([asdict(point) for point in points], indent=2) + "\n")
        write_text(folder / "sweep.svg", plot_points(points, best))
        print(f"\n{advice(best)}\nplot:     {folder / 'sweep.svg'}", flush=True)
        return
    leave_nothing(folder)


def leave_nothing(folder: Path) -> None:
    """Take away what Hydra made for a sweep of which nothing came."""
    (folder / "multirun.yaml").unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def best_point(points: Sequence[Point]) -> Point | None:
    """The fastest point; of several about as fast, the one that needs least memory. None where none was done."""
    done = [point for point in points if point.state == "done"]
    highest = max((point.images_per_second or 0.0 for point in done), default=0.0)
    fast = [point for point in done if (point.images_per_second or 0.0) >= AS_FAST * highest]
    return min(fast, key=lambda point: point.peak_bytes or 0, default=None)


def advice(best: Point) -> str:
    """Which point is best, and what to type to use it for all images."""
    rate = f", {best.images_per_second:,.1f} images/s" if best.images_per_second else ""
    lines = [f"best:     {best.name}{rate}, {_mebibytes(best.peak_bytes)}"]
    if (best.predict_seconds or 0.0) < ENOUGH_SECONDS:
        lines.append(f"          (its run took {best.predict_seconds or 0.0:.1f} s: more images tell the points apart)")
    kept = [override for override in best.overrides if not override.startswith("data.limit=")]
    return redacted_text("\n".join([*lines, f"use it:   {command('embed', *kept)}"]))


def plot_points(points: Sequence[Point], best: Point) -> str:
    """The plot: over the batch size where that is all that differs, else over the points by name."""
    sizes = all(point.name.startswith(BATCH_SIZE) and point.name[len(BATCH_SIZE) :].isdigit() for point in points)
    ordered = sorted(points, key=lambda point: int(point.batch_size)) if sizes else points
    columns = [
        _column(point, str(point.batch_size) if sizes else _short(point.name), point is best) for point in ordered
    ]
    across = "images per batch (data.batch_size)" if sizes else "point of the sweep"
    title = f"Images per second and peak memory over {across}"
    described = "; ".join(f"{column.name}: {_in_words(column)}" for column in columns)
    return side_by_side(title, described, PANELS, columns, across, joined=sizes).document()


def _column(point: Point, name: str, best: bool) -> Column:
    memory = None if point.peak_bytes is None else point.peak_bytes / 2**20
    return Column(name, (point.images_per_second, memory), "" if point.state == "done" else point.state, best)


def _short(name: str) -> str:
    """A point's overrides without the groups of their keys: what differs is the value."""
    pairs = (override.partition("=") for override in name.split(","))
    return ",".join(f"{key.rpartition('.')[2]}{equals}{value}" for key, equals, value in pairs)


def _in_words(column: Column) -> str:
    rate, memory = column.values
    told = f"{rate or 0:,.0f} images per second, {memory or 0:,.0f} MiB{' (best)' if column.best else ''}"
    return column.trouble or told


def table(points: Sequence[Point]) -> str:
    """The points as a text table, a row each."""
    header = ("point", "batch size", "images/s", "waiting for data", "peak memory", "state")
    return "\n".join(align([header, *(_row(point) for point in points)]))


def _row(point: Point) -> tuple[str, ...]:
    return (
        point.name,
        str(point.batch_size),
        _or_dash(point.images_per_second, "{:,.1f}"),
        _or_dash(point.waiting_share, "{:.0%}"),
        _mebibytes(point.peak_bytes),
        point.state,
    )


def _mebibytes(value: int | None) -> str:
    return _or_dash(value and value / 2**20, "{:,.0f} MiB")


def _or_dash(value: Any, form: str) -> str:
    return "-" if value is None else form.format(value)
