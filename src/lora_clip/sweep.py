"""Sweeps (`-m`): every point in a fresh process and a folder of its own, and one table at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

OUT_OF_MEMORY_STATUS = (12, -9)
"""The job's own exit status for it, and the kernel's way of saying it."""
RANK_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED")


@dataclass(frozen=True)
class Point:
    """A point of a sweep and what came of it: images/s, share of the time waiting for data, peak memory in bytes."""

    name: str
    batch_size: int
    state: str
    images_per_second: float | None = None
    waiting_share: float | None = None
    peak_bytes: int | None = None


def run_point(overrides: Sequence[str], name: str, output_dir: Path, batch_size: int) -> Point:
    """Run one point as `python predict.py` of its own, with `output_dir`/`name` as its folder."""
    folder = output_dir / name
    kept = [override for override in overrides if not override.startswith("output_dir=")]
    print(f"\n{name}", flush=True)
    command = [sys.executable, sys.argv[0], *kept, f'output_dir="{folder}"']
    environment = {key: value for key, value in os.environ.items() if key not in RANK_VARIABLES}
    status = subprocess.run(command, env=environment, check=False).returncode
    return read_point(folder, name, batch_size, status)


def name_points(job_overrides: Sequence[Sequence[str]]) -> list[str]:
    """A folder name for each point: the overrides in which the points differ (all, where there is one point)."""
    shared = set(job_overrides[0]).intersection(*job_overrides) if len(job_overrides) > 1 else set()
    return [
        ",".join(override.replace("/", "_") for override in overrides if override not in shared) or "point"
        for overrides in job_overrides
    ]


def read_point(folder: Path, name: str, batch_size: int, status: int) -> Point:
    """What came of a point, from its exit status and its manifest."""
    if status in OUT_OF_MEMORY_STATUS:
        return Point(name, batch_size, "out of memory")
    if status != 0:
        return Point(name, batch_size, f"failed ({status})")
    run = json.loads((folder / "manifest.json").read_text())["run"]
    peak = run["peak_device_bytes"] or run["peak_host_bytes"]
    return Point(name, batch_size, "done", run["images_per_second"], run["waiting_share"], peak)


def finish(folder: Path, points: Sequence[Point]) -> None:
    """Print the table and keep it as sweep.json; a sweep that embedded nothing leaves nothing behind."""
    print("\n" + table(points), flush=True)
    if any(point.state == "done" for point in points):
        (folder / "sweep.json").write_text(json.dumps([asdict(point) for point in points], indent=2) + "\n")
        return
    (folder / "multirun.yaml").unlink(missing_ok=True)  # Hydra's own
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def table(points: Sequence[Point]) -> str:
    """The points as a text table, a row each."""
    header = ("point", "batch size", "images/s", "waiting for data", "peak memory", "state")
    rows = [header, *(_row(point) for point in points)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _row(point: Point) -> tuple[str, ...]:
    return (
        point.name,
        str(point.batch_size),
        _or_dash(point.images_per_second, "{:,.1f}"),
        _or_dash(point.waiting_share, "{:.0%}"),
        _or_dash(point.peak_bytes and point.peak_bytes / 2**20, "{:,.0f} MiB"),
        point.state,
    )


def _or_dash(value: Any, form: str) -> str:
    return "-" if value is None else form.format(value)
