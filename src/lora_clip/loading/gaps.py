"""The gaps of a plan: work ranges by the hundred thousand, as whole numbers and not as objects."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import overload

from lora_clip.types import WorkRange


class Gaps(Sequence[WorkRange]):
    """Work ranges in order, in 24 bytes each, in memory and where they are sent to the ranks."""

    def __init__(self, gaps: Iterable[WorkRange] = ()) -> None:
        self.shards, self._starts, self._stops = array("q"), array("q"), array("q")
        for shard, start, stop in gaps:
            self.shards.append(shard)
            self._starts.append(start)
            self._stops.append(stop)

    @overload
    def __getitem__(self, at: int) -> WorkRange: ...
    @overload
    def __getitem__(self, at: slice) -> list[WorkRange]: ...
    def __getitem__(self, at: int | slice) -> WorkRange | list[WorkRange]:
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(len(self)))]
        return WorkRange(self.shards[at], self._starts[at], self._stops[at])

    def __len__(self) -> int:
        return len(self.shards)

    def __eq__(self, other: object) -> bool:
        return [*self] == [*other] if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]
