"""Shards by the hundred thousand in little memory: numbers as they are, all else as compressed JSON.

A shard as an object takes 1 KB, and one of a folder's files the names of all of them. Here names that resemble one
another take a few bytes, and looking a shard up takes some microseconds: what reads them in order reads blocks.
"""

from __future__ import annotations

import json
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import overload

from lora_clip.compact import IntMap
from lora_clip.sources.base import Shard

BLOCK = 1 << 16
"""Characters that are compressed together: the more, the smaller, and the slower to look one shard up."""


class ShardList(Sequence[Shard]):
    """Shards in order; `ids`, `images` and `bytes` are theirs, to be looked through without unpacking anything."""

    def __init__(self, shards: Iterable[Shard] = ()) -> None:
        self.ids, self.images, self.bytes = array("q"), array("q"), array("q")
        self._firsts, self._blocks = array("q"), list[bytes]()
        self._open, self._length = list[str](), 0
        self._unpacked: tuple[int, list[str]] = (-1, [])
        for shard in shards:
            self.append(shard)

    def append(self, shard: Shard) -> None:
        """Add a shard at the end."""
        self.ids.append(shard.id)
        self.images.append(shard.images)
        self.bytes.append(shard.bytes)
        self._open.append(json.dumps(shard.to_json()))
        self._length += len(self._open[-1])
        if self._length >= BLOCK:
            self._firsts.append(len(self) - len(self._open))
            self._blocks.append(zlib.compress("\n".join(self._open).encode(), 1))
            self._open, self._length = [], 0

    @overload
    def __getitem__(self, at: int) -> Shard: ...
    @overload
    def __getitem__(self, at: slice) -> list[Shard]: ...
    def __getitem__(self, at: int | slice) -> Shard | list[Shard]:
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(len(self)))]
        at = range(len(self))[at]
        block = bisect_right(self._firsts, at) - 1
        packed = len(self) - len(self._open)
        line = self._open[at - packed] if at >= packed else self._lines(block)[at - self._firsts[block]]
        return Shard.from_json(json.loads(line))

    def _lines(self, block: int) -> list[str]:
        number, lines = self._unpacked
        if number != block:
            lines = zlib.decompress(self._blocks[block]).decode().split("\n")
            self._unpacked = block, lines
        return lines

    def __len__(self) -> int:
        return len(self.ids)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ShardList):
            return NotImplemented
        return (self.ids, self._blocks, self._open) == (other.ids, other._blocks, other._open)

    __hash__ = None  # type: ignore[assignment]


class ShardsById(Mapping[int, Shard]):
    """The shards of a list by their ids, all of them or some."""

    def __init__(self, shards: ShardList, ids: Iterable[int] | None = None) -> None:
        self._shards = shards
        self._places = IntMap((id_, at) for at, id_ in enumerate(shards.ids))
        if ids is not None:
            self._places = IntMap((id_, self._places[id_]) for id_ in ids)

    def __getitem__(self, id_: int) -> Shard:
        return self._shards[self._places[id_]]

    def __contains__(self, id_: object) -> bool:
        return id_ in self._places

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
