"""timeline/rank_00003.jsonl: how a rank did over time, a line an interval, for plots and for looking back."""

from __future__ import annotations

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

from lora_clip.monitor.progress import Counters

INTERVAL = 1.0
LONGEST_INTERVAL = 60.0
LINES_PER_INTERVAL = 240
"""After so many lines the interval doubles, up to the longest: a day is some two thousand lines."""


class Timeline:
    """One rank's file; the folder is rank 0's to clear before a run."""

    def __init__(self, output_dir: Path, rank: int, workers: int) -> None:
        self.path = output_dir / "timeline" / f"rank_{rank:05d}.jsonl"
        self._workers = workers
        self._before = Counters()
        self._interval, self._lines = INTERVAL, 0

    def due(self, counters: Counters) -> bool:
        """Whether the interval is over."""
        return counters.seconds - self._before.seconds >= self._interval

    def write(self, counters: Counters) -> None:
        """Add the line of the interval that ends now. Raises OSError."""
        line = line_of(self._before, counters, self._workers)
        self._before = counters
        self._lines += 1
        if self._lines % LINES_PER_INTERVAL == 0:
            self._interval = min(2 * self._interval, LONGEST_INTERVAL)
        self.path.parent.mkdir(exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def line_of(before: Counters, now: Counters, workers: int) -> dict[str, Any]:
    """An interval in figures: `cpu` in cores, memory in bytes, power in watts, the rest as shares from 0 to 1.

    `waiting`, `forward` and `write` are shares of the rank's, the device's and the writing thread's time; `read` and
    `decode` of its workers' time, counted when a batch arrives, so that an interval may show more than 1.
    """
    seconds = max(now.seconds - before.seconds, 1e-9)
    share = {
        name: (getattr(now, name) - getattr(before, name)) / seconds
        for name in ("waiting", "forward", "blocked", "read", "decode", "write")
    }
    watched = now.watched - before.watched
    cores = (now.cpu + now.worker_cpu - before.cpu - before.worker_cpu) / watched if watched else math.nan
    values = {
        "t": time.time(),
        "seconds": seconds,
        "images": int(now.images - before.images),
        "images_per_second": (now.images - before.images) / seconds,
        **share,
        "read": share["read"] / max(1, workers),
        "decode": share["decode"] / max(1, workers),
        "cpu": cores,
        "rss_bytes": now.rss_bytes,
        "pss_bytes": now.pss_bytes,
        "device_use": now.device_now,
        "device_bytes": now.device_used_bytes,
        "device_watts": now.watts_now,
    }
    return {name: _short(value) for name, value in values.items() if not math.isnan(value)}


def _short(value: float) -> float:
    return int(value) if value == int(value) else round(value, 4)


def clear(output_dir: Path) -> None:
    """Forget an earlier run's timelines, those of ranks that this run does not have too."""
    shutil.rmtree(output_dir / "timeline", ignore_errors=True)
