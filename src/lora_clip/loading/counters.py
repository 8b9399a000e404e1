"""Whole numbers that all workers of a job share: how far the work was taken.

One rank's workers are forks of one process and share memory; several ranks ask the store of their process group.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import uuid
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
    """Counters of several ranks, kept by a store of torch's; each process that asks, forks too, has its own connection.

    `run` tells this run's numbers from those of another that the same store has served: torchrun's outlives a restart.
    """

    def __init__(self, host: str, port: int, run: str) -> None:
        self.host, self.port, self.run = host, port, run
        self.held: AbstractContextManager[Any] = multiprocessing.get_context("fork").RLock()
        self._connection: tuple[int, TCPStore] | None = None

    def __getstate__(self) -> tuple[str, int, str]:
        return self.host, self.port, self.run

    def __setstate__(self, state: tuple[str, int, str]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def add(self, index: int, amount: int) -> int:
        """Add to a number; what it was before."""
        with self.held:
            return self._store.add(self._key(index), amount) - amount

    def put(self, index: int, value: int) -> None:
        """Set a number."""
        with self.held:
            self._store.set(self._key(index), str(value))

    def peek(self, index: int) -> int:
        """What a number is now."""
        return self.add(index, 0)

    def _key(self, index: int) -> str:
        return f"lora_clip/{self.run}/{index}"

    @property
    def _store(self) -> TCPStore:
        if self._connection is None or self._connection[0] != os.getpid():
            made = TCPStore(self.host, self.port, is_master=False, wait_for_workers=False, timeout=PATIENCE)
            self._connection = os.getpid(), made
        return self._connection[1]


def serve_counters() -> tuple[TCPStore | None, Store]:
    """Counters for all ranks: in the store by which their process group met, whose port they all can reach.

    Where there is none, in one of this process, which lives as long as the first of the two that are returned.
    """
    host, port, run = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT"), uuid.uuid4().hex
    if host and port:
        return None, Store(host, int(port), run)
    served = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return served, Store("127.0.0.1", served.port, run)
