"""Who embeds what, decided while the job runs: a worker takes the next range whenever it is free.

The plan's gaps are started in order, each by one worker of the rank whose run it lies in; a rank that has started all
of its own goes on with another's. Where none is left to start, workers help with those under way. What is taken at once
becomes smaller towards the end (guided self-scheduling, Polychronopoulos and Kuck 1987), down to single batches, so
that all end together. The borders of batches are the plan's, whoever takes them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from lora_clip.loading.counters import Counters
from lora_clip.loading.plan import Plan
from lora_clip.types import UNCOUNTED, WorkRange

IMAGES_PER_RANGE = 1024
"""At most so many images are committed at once, and lost at most by a worker that dies."""
WAIT = 0.02
"""Seconds between two looks at a shard that another worker is just counting; longer where very many workers look."""
LOOKED_AT = (8, 64, 512)
"""At so many ranks or workers a worker looks, drawn at random, to find the one with most left; at more only where those
have nothing. All of thousands would be too many questions to the one store that all of them ask."""


class WorkQueue(Protocol):
    """Where a worker gets its work from.

    The borders of ranges and batches are the plan's, so that the output does not depend on who takes what.
    """

    def next(self) -> WorkRange | None:
        """The next range to embed, which nobody else gets; None when there is no more."""
        ...


class GivenRanges:
    """Ranges that are given in advance, for one worker."""

    def __init__(self, ranges: Iterable[WorkRange]) -> None:
        self._ranges = iter(ranges)

    def next(self) -> WorkRange | None:
        """The next of them."""
        return next(self._ranges, None)


class AgainFirst:
    """A worker's queue, before it the ranges that come again since another worker died of them, or beside them."""

    def __init__(self, again: Iterable[WorkRange], queue: WorkQueue) -> None:
        self._again, self._queue = iter(again), queue

    def next(self) -> WorkRange | None:
        """The next range."""
        return next(self._again, None) or self._queue.next()


def _forget(work: WorkRange) -> None:
    """Note nothing."""


class SharedQueue:
    """The work of a plan as one of its workers takes it.

    `count` tells how many images a shard has that was not counted when the plan was made. `note` hears of each range
    that is taken. A worker that takes a dead one's place goes on with what that one had begun.
    """

    def __init__(
        self, plan: Plan, counters: Counters, rank: int, worker: int, count: Callable[[int], int],
        note: Callable[[WorkRange], None] = _forget,
    ) -> None:  # fmt: skip
        self._plan, self._counters, self._count, self._note = plan, counters, count, note
        self._rank, self._number = rank, rank * plan.workers + worker
        self._index = Indices(plan)
        self._at: int | None = None
        self._resumed = False

    def next(self) -> WorkRange | None:
        """The next range; while another worker counts the last shard, it is waited for."""
        while (gap := self._gap()) is not None:
            if (work := self._take(gap)) is not None:
                return work
            self._at = None
        return None

    def _gap(self) -> int | None:
        """The gap to take from: the one under way, one that nobody has started, or one that needs help."""
        if not self._resumed:
            self._resumed = True
            self._at = self._counters.peek(self._index.current(self._number)) - 1
            self._at = None if self._at < 0 else self._at
        if self._at is None:
            self._at = self._start()
        if self._at is None:
            self._at = self._help()
        return self._at

    def _take(self, gap: int) -> WorkRange | None:
        work, length = self._plan.gaps[gap], self._length(gap)
        size = self._size(length - self._counters.peek(self._index.taken(gap)))
        with self._counters.held:
            at = self._counters.add(self._index.taken(gap), size)
            if at >= length:
                if not length and not at:
                    self._counters.add(Indices.FINISHED, 1)
                return None
            if at + size >= length:
                self._counters.add(Indices.FINISHED, 1)
            found = WorkRange(work.shard, work.start + at, work.start + min(at + size, length))
            self._note(found)
            return found

    def _length(self, gap: int) -> int:
        """How many images a gap has; one that is not counted is counted by whoever started it."""
        work = self._plan.gaps[gap]
        if work.stop != UNCOUNTED:
            return work.stop - work.start
        if not (told := self._counters.peek(self._index.counted(gap))):
            self._counters.put(self._index.counted(gap), told := self._count(work.shard) + 1)
        return told - 1

    def _size(self, remaining: int) -> int:
        """How many images to take of a gap: all that may be committed at once, and less towards the end of the job."""
        most = max(1, IMAGES_PER_RANGE // self._plan.batch_size)
        workers, not_started = self._index.workers, len(self._plan.gaps) - self._counters.peek(Indices.STARTED)
        if workers > 1 and not_started < 2 * workers:
            fair = remaining * (max(0, not_started) + 1) // (2 * workers * self._plan.batch_size)
            most = min(most, max(1, fair))
        return most * self._plan.batch_size

    def _start(self) -> int | None:
        """A gap that nobody has started; the rank's own first."""
        with self._counters.held:
            return self._start_held()

    def _start_held(self) -> int | None:
        self._counters.add(Indices.SEEKING, 1)
        try:
            if (gap := self._start_in(self._rank)) is not None:
                return gap
            while self._counters.peek(Indices.STARTED) < len(self._plan.gaps):
                rank = self._fullest()
                if rank is None:
                    return None
                if (gap := self._start_in(rank)) is not None:
                    return gap
            return None
        finally:
            self._counters.add(Indices.SEEKING, -1)

    def _start_in(self, rank: int) -> int | None:
        start, stop = self._plan.runs[rank]
        gap = start + self._counters.add(self._index.started(rank), 1)
        if gap >= stop:
            return None
        self._counters.add(Indices.STARTED, 1)
        self._counters.put(self._index.current(self._number), gap + 1)
        return gap

    def _fullest(self) -> int | None:
        """The rank with most left to start, of some; of all only where those have nothing."""
        for ranks in _drawn(self._index.ranks):
            left = {rank: self._not_started(rank) for rank in ranks}
            if left and left[most := max(left, key=left.__getitem__)] > 0:
                return most
        return None

    def _not_started(self, rank: int) -> int:
        start, stop = self._plan.runs[rank]
        return stop - start - self._counters.peek(self._index.started(rank)) if start < stop else 0

    def _help(self) -> int | None:
        """The gap under way of which most is left, as far as was looked; None where nothing is."""
        while True:
            settling = self._counters.peek(Indices.SEEKING) > 0
            started = self._counters.peek(Indices.STARTED)
            if not settling and self._counters.peek(Indices.FINISHED) >= started:
                return None
            left, uncounted = self._looked_for()
            if left:
                return max(left, key=left.__getitem__)
            if not (settling or uncounted):
                return None
            time.sleep(WAIT * max(1, self._index.workers / LOOKED_AT[-1]))

    def _looked_for(self) -> tuple[dict[int, int], bool]:
        left: dict[int, int] = {}
        uncounted = False
        for workers in _drawn(self._index.workers):
            left, uncounted = self._under_way(workers)
            if left:
                break
        return left, uncounted

    def _under_way(self, workers: Iterable[int]) -> tuple[dict[int, int], bool]:
        """How much is left of the gaps that workers are at, and whether one of them is still being counted."""
        left: dict[int, int] = {}
        uncounted = False
        for worker in workers:
            gap = self._counters.peek(self._index.current(worker)) - 1
            if gap < 0 or gap in left:
                continue
            if self._plan.gaps[gap].stop == UNCOUNTED and not self._counters.peek(self._index.counted(gap)):
                uncounted = True
            elif (rest := self._length(gap) - self._counters.peek(self._index.taken(gap))) > 0:
                left[gap] = rest
        return left, uncounted


def _drawn(count: int) -> Iterator[Sequence[int]]:
    """A few of so many numbers, then more; in the end all, unless those are very many.

    Nothing is left undone where none is found in those: whoever began a gap goes on with it.
    """
    for few in LOOKED_AT:
        if few < count:
            yield random.sample(range(count), few)
    if count <= LOOKED_AT[-1]:
        yield range(count)


class Indices:
    """Which counter is which."""

    STARTED, SEEKING, FINISHED, FIRST = 0, 1, 2, 3
    """Gaps begun; workers that look for one to begin; gaps of which everything is taken; the first of the others."""

    def __init__(self, plan: Plan) -> None:
        self.ranks, self.workers, self.gaps = len(plan.runs), len(plan.runs) * plan.workers, len(plan.gaps)

    def started(self, rank: int) -> int:
        """How many gaps of a rank's run were started."""
        return self.FIRST + rank

    def current(self, worker: int) -> int:
        """Which gap a worker started last, plus one; 0 for none."""
        return self.FIRST + self.ranks + worker

    def taken(self, gap: int) -> int:
        """How many images of a gap were taken."""
        return self.FIRST + self.ranks + self.workers + gap

    def counted(self, gap: int) -> int:
        """How many images a gap has that was not counted in the plan, plus one; 0 as long as nobody knows."""
        return self.taken(gap) + self.gaps

    def __len__(self) -> int:
        return self.counted(self.gaps)
