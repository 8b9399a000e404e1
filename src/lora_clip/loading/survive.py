"""A worker that dies, or whose decoder never comes back, costs the image that it had in hand, and not the run.

Its rank starts the workers anew. What they had taken and not delivered comes again, in the same batches; the image that
was in hand is then decoded in a process of its own (`apart.py`), which may die: a reject, unless it was not the image.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from lora_clip.loading.hands import REMEMBERED, Hands
from lora_clip.types import PixelBatch, WorkRange

SECONDS_BETWEEN_LOOKS = 1.0
DEATHS_WITHOUT_IMAGE = 3
"""So many times workers may die in a row without an image in hand before the run ends: it is not the images then."""


@dataclass(frozen=True)
class Remains:
    """What workers that are started anew have to know: ranges that come again, from which position on, and suspects."""

    ranges: Sequence[WorkRange] = ()
    resume_at: dict[WorkRange, int] = field(default_factory=dict)
    suspects: frozenset[tuple[int, int]] = frozenset()


Start = Callable[[Remains, Hands], Any]
"""Makes a DataLoader, whose workers note in the Hands what they do."""


class SurvivingBatches:
    """The batches of a rank's workers, whatever happens to the workers.

    `seconds` is how long an image may be decoded; while `held` is entered no worker holds a lock of the job's.
    Raises RuntimeError where workers die and no image can be the reason.
    """

    def __init__(
        self, start: Start, workers: int, batch_size: int, seconds: float, held: AbstractContextManager[Any]
    ) -> None:
        self._start, self._workers, self._batch_size, self._seconds = start, workers, batch_size, seconds
        self._held = held
        self._delivered: Counter[WorkRange] = Counter()
        self._finished: set[WorkRange] = set()
        self._suspects: frozenset[tuple[int, int]] = frozenset()
        self._deaths = 0
        self._retired: list[Any] = []
        self._begin(Remains())

    def _begin(self, remains: Remains) -> None:
        self._hands = Hands(self._workers)
        self._remains = remains
        before = signal.getsignal(signal.SIGCHLD)
        self._batches = iter(self._start(remains, self._hands))
        if threading.current_thread() is threading.main_thread():
            # torch's handler would raise wherever the main thread is at that moment; its iterator looks for itself
            signal.signal(signal.SIGCHLD, before)
        self._watch = Watch(self._hands, self._processes(), self._seconds)

    def __iter__(self) -> Iterator[PixelBatch]:
        return self

    def __next__(self) -> PixelBatch:
        """The next batch, of the workers that live."""
        while True:
            try:
                batch = next(self._batches)
            except StopIteration:
                self._watch.stop()
                raise
            except RuntimeError as error:
                self._start_anew(error)
                continue
            self._note(batch)
            return batch

    def _note(self, batch: PixelBatch) -> None:
        self._deaths = 0
        self._delivered[batch.work] += 1
        if batch.last:
            del self._delivered[batch.work]
            self._finished.add(batch.work)
            if len(self._finished) > 4 * REMEMBERED * self._workers:
                self._finished &= {*self._remains.ranges, *self._hands.taken()}

    def _processes(self) -> list[Any]:
        return list(getattr(self._batches, "_workers", ()))

    def _start_anew(self, error: RuntimeError) -> None:
        """Once more, without the workers that are there. Raises the error where none of them has died."""
        dead = [number for number, process in enumerate(self._processes()) if process.exitcode]
        if not dead:
            raise error
        in_hand = [found for number in dead if (found := self._hands.in_hand(number))]
        suspects = self._suspects.union((one.shard, one.position) for one in in_hand)
        self._deaths += 1
        if suspects == self._suspects and self._deaths > DEATHS_WITHOUT_IMAGE:
            raise error
        self._suspects = suspects
        self._end()
        self._begin(self._left())

    def _end(self) -> None:
        """End the workers that live: what they have in hand comes again."""
        self._watch.stop()
        with self._held:
            for process in self._processes():
                process.kill()
                process.join()
        self._batches._shutdown_workers()
        self._retired.append(self._batches)  # batches of it are still in the model: their memory must stay

    def _left(self) -> Remains:
        """What was taken and not delivered: of a range that was begun, the batches that are missing."""
        taken = dict.fromkeys([*self._remains.ranges, *self._hands.taken()])
        ranges = [work for work in taken if work not in self._finished]
        resume_at = {work: work.start + self._delivered[work] * self._batch_size for work in ranges}
        return Remains(ranges, resume_at, self._suspects)


class Watch:
    """Kills a worker that has had one image in hand for too long."""

    def __init__(self, hands: Hands, processes: Sequence[Any], seconds: float) -> None:
        self._hands, self._processes, self._seconds = hands, processes, seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, name="hands", daemon=True)
        if processes:
            self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()

    def _look(self) -> None:
        while not self._stopped.wait(min(SECONDS_BETWEEN_LOOKS, self._seconds)):
            for number, process in enumerate(self._processes):
                found = self._hands.in_hand(number)
                # one that is decoded apart has a limit of its own, which must come first
                if found is not None and found.seconds > 1.5 * self._seconds and process.is_alive():
                    os.kill(process.pid, signal.SIGKILL)
