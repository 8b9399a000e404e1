"""Whole numbers that all workers of a job share: how far the work was taken.

One rank's workers are forks of one process and share memory; several ranks ask a store of rank 0, as torch's own
process groups do.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, Protocol

import numpy as np
from torch.distributed import TCPStore

PATIENCE = timedelta(minutes=5)
"""How long a worker tries to reach the store: it is there before the first worker is."""


class Counters(Protocol):
    """Numbers by index, 0 at first; each method is one step that nobody can come between.

    While a rank has entered `held` none of its processes is within such a step, so that those it kills leave nothing
    half done; one that has entered it may take such steps.
    """

    held: AbstractContextManager[Any]

    def add(self, index: int, amount: int) -> int:
        """Add to a number; what it was before."""
        ...

    def put(self, index: int, value: int) -> None:
        """Set a number."""
        ...

    def peek(self, index: int) -> int:
        """What a number is now."""
        ...


class SharedMemory:
    """Counters of a process and its forks: memory without a name, which is gone when they are, however they end."""

    def __init__(self, size: int) -> None:
        self._values = np.frombuffer(mmap.mmap(-1, 8 * size), dtype=np.int64)
        self.held: AbstractContextManager[Any] = multiprocessing.get_context("fork").RLock()

    def add(self, index: int, amount: int) -> int:
        """Add to a number; what it was before."""
        with self.held:
            before = int(self._values[index])
            self._values[index] = before + amount
        return before

    def put(self, index: int, value: int) -> None:
        """Set a number."""
        with self.held:
            self._values[index] = value

    def peek(self, index: int) -> int:
        """What a number is now."""
        return int(self._values[index])


class Store:
    """Counters of several ranks, held by rank 0; each process that asks, forks too, has a connection of its own."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.held: AbstractContextManager[Any] = multiprocessing.get_context("fork").RLock()
        self._connection: tuple[int, TCPStore] | None = None

    def __getstate__(self) -> tuple[str, int]:
        return self.host, self.port

    def __setstate__(self, state: tuple[str, int]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def add(self, index: int, amount: int) -> int:
        """Add to a number; what it was before."""
        with self.held:
            return self._store.add(str(index), amount) - amount

    def put(self, index: int, value: int) -> None:
        """Set a number."""
        with self.held:
            self._store.set(str(index), str(value))

    def peek(self, index: int) -> int:
        """What a number is now."""
        return self.add(index, 0)

    @property
    def _store(self) -> TCPStore:
        if self._connection is None or self._connection[0] != os.getpid():
            made = TCPStore(self.host, self.port, is_master=False, wait_for_workers=False, timeout=PATIENCE)
            self._connection = os.getpid(), made
        return self._connection[1]


def serve_counters() -> tuple[TCPStore, Store]:
    """A store in this process, which lives as long as the first of the two, and how the others reach it."""
    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    served = TCPStore(host, 0, is_master=True, wait_for_workers=False)
    return served, Store(host, served.port)
