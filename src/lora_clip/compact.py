"""Whole numbers by whole numbers in 16 bytes a pair: what a job of a hundred thousand shards keeps of each."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise


class IntMap(Mapping[int, int]):
    """A mapping of 64-bit integers that does not change, ascending by its keys; a dict takes 100 bytes a pair."""

    def __init__(self, pairs: Iterable[tuple[int, int]] = ()) -> None:
        self._keys, self._values = array("q"), array("q")
        for key, value in pairs:
            self._keys.append(key)
            self._values.append(value)
        if any(one >= other for one, other in pairwise(self._keys)):
            known = dict(zip(self._keys, self._values, strict=True))
            self._keys = array("q", sorted(known))
            self._values = array("q", map(known.__getitem__, self._keys))

    def __getitem__(self, key: int) -> int:
        if 0 <= key < len(self._keys) and self._keys[key] == key:  # ids mostly are their own places
            return self._values[key]
        at = bisect_left(self._keys, key)
        if at == len(self._keys) or self._keys[at] != key:
            raise KeyError(key)
        return self._values[at]

    def __iter__(self) -> Iterator[int]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
