"""The gaps of a plan, by the hundred thousand as whole numbers and not as objects, and how large they are."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import overload

from lora_clip.compact import IntMap
from lora_clip.sources.shard_list import ShardList
from lora_clip.types import UNCOUNTED, WorkRange


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


class Sizes:
    """How large gaps are, about where nobody has counted their shards."""

    def __init__(self, shards: ShardList, announced: Mapping[int, int]) -> None:
        self._shards, self._announced = shards, announced
        self._places = IntMap((id_, at) for at, id_ in enumerate(shards.ids))
        self.bytes_per_image = self._bytes_per_image()

    def _bytes_per_image(self) -> float:
        """Of what is counted, and of what is announced: of the others nothing is known but their bytes."""
        images = size = 0
        for id_, found, its in zip(self._shards.ids, self._shards.images, self._shards.bytes, strict=True):
            known = found if found != UNCOUNTED else self._announced.get(id_, 0)
            images, size = images + known, size + (its if known else 0)
        return max(1.0, size / max(1, images))

    def is_known(self, gap: WorkRange) -> bool:
        """Whether a gap's images are counted, or at least announced."""
        return gap.stop != UNCOUNTED or gap.shard in self._announced

    def bytes(self, gap: WorkRange) -> int:
        """What is to be read for a gap, and something for each image that has no bytes."""
        place = self._places[gap.shard]
        if gap.stop == UNCOUNTED:
            return self._shards.bytes[place] + self._announced.get(gap.shard, 0)
        images = gap.stop - gap.start
        return images + self._shards.bytes[place] * images // max(1, self._shards.images[place])

    def images(self, gap: WorkRange) -> int:
        """The images of a gap."""
        if gap.stop != UNCOUNTED:
            return gap.stop - gap.start
        announced = self._announced.get(gap.shard)
        likely = announced if announced is not None else round(self.bytes(gap) / self.bytes_per_image)
        return max(1, likely - gap.start)  # never nothing: whoever believed a wrong one would leave images out
