"""Who embeds what where several jobs write to one output: a worker claims the next cell in the output's folder.

A cell is a range of some hundred images with fixed borders, in whole batches. A worker begins a gap of the plan that
nobody has begun, each worker elsewhere, and goes on with it cell by cell; where none is left it helps with those under
way, takes what a silent job had claimed, and waits for what others have in hand: they might fall silent too.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import cached_property

from lora_clip.loading.catalog import Catalog
from lora_clip.loading.plan import Plan
from lora_clip.output.share import COUNT, DONE, Share, unit_of
from lora_clip.sources.base import Shard
from lora_clip.types import UNCOUNTED, PixelBatch, WorkRange

CELL_IMAGES = 512
"""Images of a cell, about: so much is done twice where a job is given up, and so long the last waits for another."""
GOLDEN = 0.6180339887498949
WAIT, WAIT_A_GAP = 0.2, 0.001
"""Seconds between two looks at what others have in hand, and for each gap that they look at."""


def cell_size(batch_size: int) -> int:
    """Images of a cell, in whole batches."""
    return max(1, CELL_IMAGES // batch_size) * batch_size


def cells(gap: WorkRange, stop: int, size: int) -> Iterator[WorkRange]:
    """The cells of a gap that ends at `stop`."""
    for start in range(gap.start, stop, size):
        yield WorkRange(gap.shard, start, min(start + size, stop))


class ClaimingQueue:
    """The work of a plan as one worker of one of several jobs takes it.

    `note` hears of a range before it is claimed, and `drop` if it is somebody else's: a worker that dies in between
    loses nothing.
    """

    def __init__(
        self, plan: Plan, share: Share, worker: int, catalog: Catalog, note: Callable[[WorkRange], None],
        drop: Callable[[], None],
    ) -> None:  # fmt: skip
        self._plan, self._share, self._catalog = plan, share, catalog
        self._note, self._drop = note, drop
        self._first = int(len(plan.gaps) * (GOLDEN * (share.me + worker) % 1))
        self._not_begun = self._from_first()
        self._under_way: Iterator[WorkRange] = iter(())

    def next(self) -> WorkRange | None:
        """The next range; None when all that the jobs share is committed."""
        return self._go_on() or self._begin() or self._help()

    def _from_first(self) -> Iterator[WorkRange]:
        """All gaps, each worker from another one on."""
        yield from (self._plan.gaps[at] for at in range(self._first, len(self._plan.gaps)))
        yield from (self._plan.gaps[at] for at in range(self._first))

    @cached_property
    def _open(self) -> deque[WorkRange]:
        """The gaps of which something may be left to do; made when a worker has begun all that it can."""
        return deque(self._from_first())

    def _go_on(self) -> WorkRange | None:
        """The next cell of the gap that this worker has begun, up to one that somebody else has."""
        for cell in self._under_way:
            self._note(cell)
            if self._share.claim(cell.shard, unit_of(cell)):
                return cell
            self._drop()
            self._under_way = iter(())
        return None

    def _begin(self) -> WorkRange | None:
        """The first cell of a gap of which nobody has it."""
        for gap in self._not_begun:
            if self._share.is_finished(gap.shard) or (stop := self._stop(gap)) is None:
                continue
            self._under_way = cells(gap, stop, self._plan.cell)
            if (cell := self._go_on()) is not None:
                return cell
        return None

    def _help(self) -> WorkRange | None:
        """A cell that nobody has, or not any more; waits as long as others have some in hand."""
        looked_at = 0
        while self._open:
            gap = self._open.popleft()
            left, cell = self._look(gap)
            if cell is not None:
                self._open.appendleft(gap)
                return cell
            self._open += [gap] if left else []
            if (looked_at := looked_at + 1) > len(self._open) > 0:
                time.sleep(WAIT + WAIT_A_GAP * len(self._open))
                looked_at = 0
        return None

    def _look(self, gap: WorkRange) -> tuple[bool, WorkRange | None]:
        """Whether anything of a gap is not committed, and a cell of it that is this worker's now."""
        names = self._share.look(gap.shard)
        if self._share.is_finished(gap.shard):
            return False, None
        if (stop := self._stop(gap, taken_over=True)) is None:
            return True, None
        left = [cell for cell in cells(gap, stop, self._plan.cell) if unit_of(cell) + DONE not in names]
        for cell in left:
            self._note(cell)
            if self._share.take_over(cell.shard, unit_of(cell), names):
                return True, cell
            self._drop()
        return bool(left), None

    def _stop(self, gap: WorkRange, taken_over: bool = False) -> int | None:
        """Where a gap ends; of an uncounted one None while somebody else counts."""
        if gap.stop != UNCOUNTED:
            return gap.stop
        told = self._share.counted(gap.shard)
        if told is None and self._may_count(gap.shard, taken_over):
            self._share.count(self._catalog[gap.shard].to_json())
            told = self._share.counted(gap.shard)
        if told is None:
            return None
        self._catalog.learn(Shard.from_json(told))
        return self._catalog.images(gap.shard)

    def _may_count(self, shard: int, taken_over: bool) -> bool:
        if taken_over:
            return self._share.take_over(shard, COUNT, self._share.look(shard))
        return self._share.claim(shard, COUNT)


class OneByOne:
    """Batches as Lightning takes them with a length: one after the other, none in advance.

    It would keep the last batch back until it has seen that no more come, and so would each of several jobs that wait
    for one another's last.
    """

    LENGTH = 1 << 40
    """More than there are: the end of the batches ends the loop."""

    def __init__(self, batches: Iterator[PixelBatch]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[PixelBatch]:
        return self._batches

    def __len__(self) -> int:
        return self.LENGTH
