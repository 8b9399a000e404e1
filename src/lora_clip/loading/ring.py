"""Pixel buffers shared by worker processes and the main process, made once: a fresh one a batch costs page faults.

Anonymous memory, inherited by fork: the size of /dev/shm, 64 MB in many containers, does not matter.
"""

from __future__ import annotations

import itertools
import mmap
import multiprocessing
import os
import pickle
import tempfile
from dataclasses import dataclass, fields
from math import prod
from typing import Any
from weakref import WeakValueDictionary, finalize

import torch

from lora_clip.types import PixelBatch

_rings: WeakValueDictionary[int, Ring] = WeakValueDictionary()
"""By number: what a batch that comes from a worker says of where its pixels lie."""
_numbers = itertools.count()
APART = 1 << 32
"""Bytes between what is told of two slots; what is never written to takes no memory."""


class Ring:
    """`slots` buffers of `shape` uint8 for each worker, who fills them in turn; one is free again once released.

    With each goes room for so many bytes of `encoded` images; what is never written to takes no memory. And room for
    what is told of a batch, however much: a pipe would hold half of it where a worker dies while it is sent, and the
    main process would wait for the rest for ever. The number of a slot is written at once or not at all.
    """

    def __init__(self, workers: int, slots: int, shape: tuple[int, ...], encoded: int = 0) -> None:
        self.number = next(_numbers)
        # one semaphore a worker, which counts its free buffers: a worker waits for its own and for nobody else's
        self._free = [multiprocessing.get_context("fork").Semaphore(slots) for _ in range(workers)]
        # shared and without a name: nothing is left behind, however the processes end
        self._pixels_WSBCHW = shared(workers, slots, *shape)
        self._encoded_WSE = shared(workers, slots, encoded)
        self._told = _nameless_file()
        finalize(self, os.close, self._told)
        self._next = 0
        _rings[self.number] = self

    @property
    def memory(self) -> torch.Tensor:
        """All its buffers, as they lie in memory."""
        return self._pixels_WSBCHW

    def take(self, worker: int) -> tuple[torch.Tensor, Slot]:
        """The worker's next buffer (B, C, H, W), as soon as it is free; its content is what it held before."""
        self._free[worker].acquire()
        # each worker is a fork and counts for itself; released in the order taken, the next one is the free one
        index, self._next = self._next, (self._next + 1) % self._pixels_WSBCHW.shape[1]
        return self._pixels_WSBCHW[worker, index], Slot(self.number, worker, index)

    def pixels(self, slot: Slot) -> torch.Tensor:
        """The buffer of a slot."""
        return self._pixels_WSBCHW[slot.worker, slot.index]

    def encoded(self, slot: Slot) -> torch.Tensor:
        """The room for encoded images that goes with a slot, (bytes,)."""
        return self._encoded_WSE[slot.worker, slot.index]

    def keep(self, slot: Slot, told: Any) -> int:
        """Keep what is told of a slot's batch for the main process; how many bytes that takes."""
        return os.pwrite(self._told, pickle.dumps(told), self._place(slot))

    def kept(self, slot: Slot, size: int) -> Any:
        """What was kept for a slot."""
        return pickle.loads(os.pread(self._told, size, self._place(slot)))

    def _place(self, slot: Slot) -> int:
        return APART * (slot.worker * self._pixels_WSBCHW.shape[1] + slot.index)

    def release(self, slot: Slot) -> None:
        """Let the worker fill the buffer again. A worker's buffers must be released in the order they were taken."""
        self._free[slot.worker].release()


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a batch's pixels lie."""

    ring: int
    worker: int
    index: int


@dataclass(slots=True)
class SharedBatch(PixelBatch):
    """A PixelBatch whose pixels stay where they are when it goes from a worker to the main process."""

    slot: Slot | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # pickled is the number of the slot; all else lies in memory that both processes have
        assert self.slot is not None
        return _arrive, (self.slot, ring_of(self.slot).keep(self.slot, self.told()))

    def told(self) -> dict[str, Any]:
        """All but the pixels."""
        return {one.name: getattr(self, one.name) for one in fields(PixelBatch) if one.name != "pixels_BCHW"}

    def pin_memory(self) -> PixelBatch:
        """The same batch in page-locked memory; the buffer is free."""
        pinned = PixelBatch(self.pixels_BCHW.pin_memory(), **self.told())
        self.release()
        return pinned

    def release(self) -> None:
        """Let the worker have the buffer again."""
        assert self.slot is not None
        ring_of(self.slot).release(self.slot)


def shared(*shape: int) -> torch.Tensor:
    """Zeros, uint8, in memory that forks of this process share."""
    memory = mmap.mmap(-1, max(1, prod(shape)))
    return torch.frombuffer(memory, dtype=torch.uint8)[: prod(shape)].view(shape)


def ring_of(slot: Slot) -> Ring:
    """The ring of a slot: in the main process the one of that number, which the worker inherited."""
    return _rings[slot.ring]


def _nameless_file() -> int:
    """A file that is gone when nobody has it open, in memory where the system can do that."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("batches")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _arrive(slot: Slot, size: int) -> SharedBatch:
    ring = ring_of(slot)
    return SharedBatch(ring.pixels(slot), **ring.kept(slot, size), slot=slot)
