"""Seconds of a piece of work on a device, by the host's clock with the device waited for at both ends."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from statistics import median

import torch

ROUNDS, FEW = 5, 3
MOST_CALLS = 5_000


def first_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the first call, with all that is made or compiled in it."""
    return _timed(work, 1, device)


def seconds_a_call(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """The median of some rounds that take about so many seconds in all, after calls that are not counted."""
    first_seconds(work, device)
    once = _timed(work, FEW, device) / FEW
    calls = min(MOST_CALLS, max(1, round(seconds / ROUNDS / max(once, 1e-6))))
    return median(_timed(work, calls, device) / calls for _ in range(ROUNDS))


def _timed(work: Callable[[], object], calls: int, device: torch.device) -> float:
    """Calls are queued on a GPU and nothing waits between them, as in a job."""
    wait(device)
    began = time.perf_counter()
    for _ in range(calls):
        work()
    wait(device)
    return time.perf_counter() - began


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free() -> None:
    """Give memory back to the device that nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
