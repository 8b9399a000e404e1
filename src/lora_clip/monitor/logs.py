"""The figures of all ranks for one of Lightning's loggers, every few seconds: on rank 0, in a thread of its own.

A logger may wait for a server; nothing waits for the logger. One that fails is told of once, and the run goes on.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import Logger

from lora_clip.monitor.progress import Counters, Progress, total

INTERVAL = 5.0
"""Seconds between two lines of a log."""
PATIENCE = 30.0
"""Seconds that the end of a run waits for a logger."""
MOST_RANKS = 64
"""Ranks that have a curve of their own."""
TOTALS = (
    "images", "images_per_second", "wall_seconds", "startup_seconds", "waiting_share",
    "peak_bytes", "peak_host_bytes", "peak_device_bytes",
)  # fmt: skip
"""Of the record of a run, what is logged at its end."""


class LoggedFigures(threading.Thread):
    """Tells a logger what the ranks have counted since it last looked; `step` is the seconds since the run began."""

    def __init__(self, logger: Logger, progress: Progress, ranks: int, setting: Mapping[str, Any]) -> None:
        super().__init__(name="logger", daemon=True)
        self._logger, self._progress, self._ranks, self._setting = logger, progress, ranks, setting
        self._before: list[Counters] = [Counters() for _ in range(ranks)]
        self._stopped = threading.Event()
        self._last: Callable[[], None] = lambda: None
        self._told = False

    def run(self) -> None:
        """Log until it is stopped, then what `end` or `stop` gave."""
        self._try(lambda: self._logger.log_hyperparams(dict(self._setting)))
        while not self._stopped.wait(INTERVAL):
            self._try(self._look)
        self._try(self._last)

    def end(self, ranks: Sequence[Counters], record: Mapping[str, Any]) -> None:
        """Log the last figures, the totals and the bottleneck of the run; waits for that a while, and no longer."""
        rejects = total(ranks, "rejects")
        totals = {f"run/{name}": float(record[name]) for name in TOTALS if record.get(name) is not None}

        def last() -> None:
            step = self._log(list(ranks))
            self._logger.log_metrics({**totals, "run/rejects": rejects}, step)
            self._logger.log_hyperparams({**self._setting, "bottleneck": record.get("bottleneck", "")})
            self._logger.finalize("success")

        self._finish(last)

    def stop(self) -> None:
        """The run has failed."""
        self._finish(lambda: self._logger.finalize("failed"))

    def _finish(self, last: Callable[[], None]) -> None:
        if not self._stopped.is_set():
            self._last = last
            self._stopped.set()
            self.join(PATIENCE)

    def _look(self) -> None:
        self._log(self._progress.read(self._ranks))

    def _log(self, now: list[Counters]) -> int:
        step = round(max((rank.seconds for rank in now), default=0.0))
        if figures := figures_of(self._before, now):
            self._logger.log_metrics(figures, step)
            self._logger.save()
            self._before = now
        return step

    def _try(self, log: Callable[[], None]) -> None:
        try:
            log()
        except Exception as error:
            if not self._told:
                name = type(self._logger).__name__
                print(f"note: {name} failed ({str(error).strip() or repr(error)}); the run goes on", file=sys.stderr)
            self._told = True


def figures_of(before: Sequence[Counters], now: Sequence[Counters]) -> dict[str, float]:
    """All ranks since the last look: rates by the second, shares from 0 to 1, memory in bytes; unknown ones left out.

    `waiting` (for data), `forward` and `blocked` (by the writer) are shares of the ranks' time. `images` and `rejects`
    count from the beginning. Empty where no time has passed.
    """
    seconds = max((rank.seconds for rank in now), default=0.0) - max((rank.seconds for rank in before), default=0.0)
    if seconds <= 0:
        return {}
    passed = _since(before, now, "seconds")
    watched = _since(before, now, "watched")
    cpu = _since(before, now, "cpu") + _since(before, now, "worker_cpu")
    read = _since(before, now, "read_bytes")
    figures = {
        "images": total(now, "images"),
        "rejects": total(now, "rejects"),
        "images_per_second": _since(before, now, "images") / seconds,
        "read_bytes_per_second": read / seconds,
        **{f"{name}_share": _since(before, now, name) / passed for name in ("waiting", "forward", "blocked") if passed},
        "cpu_cores": cpu / watched * len(now) if watched else math.nan,
        "memory_bytes": total(now, "pss_bytes"),
        "gpu_share": total(now, "device_now") / len(now),
        "gpu_memory_bytes": total(now, "device_used_bytes"),
        "gpu_watts": total(now, "watts_now"),
        **(_by_rank(before, now, seconds) if 1 < len(now) <= MOST_RANKS else {}),
    }
    return {name: value for name, value in figures.items() if not math.isnan(value)}


def _since(before: Sequence[Counters], now: Sequence[Counters], name: str) -> float:
    """What a figure of all ranks together has grown by."""
    return total(now, name) - total(before, name)


def _by_rank(before: Sequence[Counters], now: Sequence[Counters], seconds: float) -> dict[str, float]:
    return {
        f"rank_{at:02d}/images_per_second": (rank.images - was.images) / seconds
        for at, (was, rank) in enumerate(zip(before, now, strict=True))
    }
