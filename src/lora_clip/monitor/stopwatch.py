"""Where a rank's time goes, measured at the borders of its batches."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Times(NamedTuple):
    """Seconds since the first batch was through: waiting for data, in the model, held up by the writer."""

    waiting: float
    forward: float
    blocked: float


class Stopwatch:
    """The host's view: what passes between two borders belongs to the phase that began at the first of them.

    The first batch is left out: it pays for starting workers, first reads and compiling.
    """

    def __init__(self) -> None:
        self.started = self._mark = time.perf_counter()
        self.first = 0.0
        self._phase = "waiting"
        self._totals = {"waiting": 0.0, "forward": 0.0, "blocked": 0.0}

    def batch_came(self) -> None:
        """Data is there, and the model begins."""
        self._turn("forward")

    def batch_left(self) -> None:
        """The model has what it needs, and the writer is asked to take the result."""
        self._turn("blocked")
        if not self.first:
            self.first = self._mark - self.started
            self._totals = dict.fromkeys(self._totals, 0.0)

    def batch_taken(self) -> None:
        """The writer has it; the next batch is waited for."""
        self._turn("waiting")

    def last_batch_left(self) -> None:
        """No data comes any more; the writer finishes."""
        self._turn("blocked")

    def finish(self) -> None:
        """The writer has finished."""

    def _turn(self, phase: str) -> None:
        now = time.perf_counter()
        self._totals[self._phase] += now - self._mark
        self._mark, self._phase = now, phase

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    def read(self) -> Times:
        """The times up to now, what goes on at the moment included; may be called from another thread."""
        if not self.first:
            return Times(0.0, 0.0, 0.0)
        times, phase, going_on = dict(self._totals), self._phase, time.perf_counter() - self._mark
        times[phase] += max(0.0, going_on)
        return Times(**times)


class WaitingStopwatch(Stopwatch):
    """The host's view of a device that works behind its back, and of which it asks the end of every batch.

    That costs nothing where the writer's copy waits for the device anyway: everywhere but on CUDA.
    """

    def __init__(self, wait: Callable[[], None] = lambda: torch.mps.synchronize()) -> None:
        super().__init__()
        self._wait = wait

    def batch_left(self) -> None:
        """The model has given its result."""
        self._wait()
        super().batch_left()


class DeviceStopwatch(Stopwatch):
    """A GPU's view. The host runs ahead of it, so its time is taken from events in its own stream.

    An event is read only once it lies in the past: nothing waits for the device. Copying a batch to the device falls
    between the end of one batch and the start of the next and cannot be told there from idling; from page-locked
    memory it is a small part of either. What the host waited for data, or for the writer, is the device's loss only as
    far as it idled: a host that is far ahead stands in the writer's queue, and nothing is held up by that.
    """

    def __init__(self, new_event: Callable[[], Any] = lambda: torch.cuda.Event(enable_timing=True)) -> None:
        super().__init__()
        self._new_event = new_event
        self._begun: Any = None
        self._last: Any = None
        self._open: deque[tuple[Any, Any]] = deque()
        self._busy = self._idle = 0.0

    def batch_came(self) -> None:
        """Mark the device's time too."""
        super().batch_came()
        self._begun = self._event()

    def batch_left(self) -> None:
        """Mark the device's time too, and settle the batches that are through."""
        self._open.append((self._begun, self._event()))
        self._settle()
        super().batch_left()

    def _event(self) -> Any:
        event = self._new_event()
        event.record()
        return event

    def _settle(self) -> None:
        while self._open and self._open[0][1].query():
            begin, end = self._open.popleft()
            if self._last is not None:
                self._idle += self._last.elapsed_time(begin) / 1000
                self._busy += begin.elapsed_time(end) / 1000
            self._last = end

    def finish(self) -> None:
        """Settle the last batches: the writer has received all of them, and the device has idled since."""
        self._settle()
        if self._last is not None:
            end = self._event()
            end.synchronize()  # at once: all work is done
            self._idle += self._last.elapsed_time(end) / 1000

    def read(self) -> Times:
        """The device's times up to the latest batch that is through."""
        host, idle = super().read(), self._idle
        waiting = min(host.waiting, idle)
        return Times(waiting, self._busy, min(host.blocked, idle - waiting))


def stopwatch_for(device: torch.device) -> Stopwatch:
    """The stopwatch that tells the truth about a device."""
    kinds: dict[str, type[Stopwatch]] = {"cuda": DeviceStopwatch, "mps": WaitingStopwatch}
    return kinds.get(device.type, Stopwatch)()
