"""Who embeds what: a worker asks for one work range after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol

from lora_clip.types import WorkRange


class WorkQueue(Protocol):
    """Where a worker gets its work from.

    The borders of ranges and batches are the plan's, so that the output does not depend on who takes what.
    """

    def next(self) -> WorkRange | None:
        """The next range to embed, which nobody else gets; None when there is no more."""
        ...


class PlannedQueue:
    """The ranges that the plan gave one worker, in order."""

    def __init__(self, ranges: Iterable[WorkRange]) -> None:
        self._ranges = deque(ranges)

    def next(self) -> WorkRange | None:
        """The next range of the list."""
        return self._ranges.popleft() if self._ranges else None
