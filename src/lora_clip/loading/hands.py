"""What each worker of a rank is at, in memory that outlives it: if it dies, it is known which image it had in hand."""

from __future__ import annotations

import mmap
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lora_clip.types import WorkRange

REMEMBERED = 32
"""Ranges a worker has taken last; of those that came before, all batches have been delivered."""
PLACES = REMEMBERED + 1
"""One more: a range that is dropped has taken the place of none that is remembered."""


class InHand(NamedTuple):
    """The image that a worker decodes, and for how many seconds it has done so."""

    shard: int
    position: int
    seconds: float


class Hands:
    """A row of numbers for each worker, written by it and read by the main process that it is a fork of."""

    def __init__(self, workers: int) -> None:
        self._values_WV = np.frombuffer(mmap.mmap(-1, 8 * max(1, workers) * (4 + 3 * PLACES)), dtype=np.int64)
        self._values_WV = self._values_WV.reshape(max(1, workers), -1)

    def take(self, worker: int, work: WorkRange) -> None:
        """Note a range before anything is done for it."""
        row = self._values_WV[worker]
        at = 4 + 3 * (int(row[3]) % PLACES)
        row[at : at + 3] = work
        row[3] += 1

    def drop(self, worker: int) -> None:
        """Take back the range that was noted last: it is somebody else's."""
        self._values_WV[worker, 3] -= 1

    def begin(self, worker: int, shard: int, position: int) -> None:
        """Note an image before it is decoded."""
        self._values_WV[worker, :3] = shard + 1, position, time.monotonic_ns()

    def end(self, worker: int) -> None:
        """The decoder is back."""
        self._values_WV[worker, 0] = 0

    def in_hand(self, worker: int) -> InHand | None:
        """The image that a worker decodes, or was at when it died."""
        shard, position, since = map(int, self._values_WV[worker, :3])
        return InHand(shard - 1, position, (time.monotonic_ns() - since) / 1e9) if shard else None

    def taken(self) -> Sequence[WorkRange]:
        """The ranges that workers have taken last, delivered ones among them."""
        ranges = []
        for row in self._values_WV:
            for number in range(max(0, int(row[3]) - REMEMBERED), int(row[3])):
                at = 4 + 3 * (number % PLACES)
                ranges.append(WorkRange(*map(int, row[at : at + 3])))
        return ranges
