"""A remote file as it arrives: blocks of some megabytes in a temporary file, several fetched at a time, each only once.

Readers wait for the blocks that they ask for; who reads on finds the next ones there. The file has no name, so that
nothing of it stays whatever ends the process. Blocks are written at their own offsets and never changed, so a forked
process reads those that are there from the same file.
"""

from __future__ import annotations

import os
import queue
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol, Self

from lora_clip.io.retry import persist
from lora_clip.io.stamps import Stamp

BLOCK = 4 << 20
"""Bytes. One request takes some 50 ms to answer whatever it asks for; larger blocks let the first image wait."""
IN_FLIGHT = 4
"""Requests at a time, and blocks ahead of a reader that reads on."""
FULL = 0.9
"""How much of the temporary files' disk may be in use before older blocks are dropped."""
LEAST_BLOCKS, MOST_BLOCKS = 16, 1024
"""What one spool may hold in any case, and at most."""


class RemoteFile(Protocol):
    """A file somewhere else; each method is one try, and `retry` decides whether there is another."""

    def turn(self) -> AbstractContextManager[Any]:
        """Held during `fetch`, by those that must not fetch at the same time."""
        ...

    def look(self) -> Stamp:
        """The file's stamp as it is now."""
        ...

    def fetch(self, start: int, stop: int, expected: Stamp, take: Callable[[int, bytes], None]) -> None:
        """Give the bytes from `start` to `stop` to `take`, with their offsets, in order; more may come around them.

        Raises ChangedError where the file is not the `expected` one.
        """
        ...


class Spool:
    """The blocks of one remote file of one stamp; safe to share between threads."""

    def __init__(self, remote: RemoteFile, stamp: Stamp) -> None:
        self.remote, self.stamp, self.size = remote, stamp, stamp[0]
        self._blocks = -(-self.size // BLOCK)
        self._file = _Unnamed()
        self._here = bytearray(self._blocks)
        self._prepare()

    def _prepare(self) -> None:
        self._changed = threading.Condition()
        self._coming: set[int] = set()
        self._failed: dict[int, Exception] = {}
        self._last, self._ahead = -1, 1

    def inherited(self, remote: RemoteFile) -> Self:
        """The same blocks in a forked process, where no thread fetches and locks may be held by nobody."""
        mine = object.__new__(type(self))
        mine.remote, mine.stamp, mine.size = remote, self.stamp, self.size
        mine._blocks, mine._file, mine._here = self._blocks, self._file, bytearray(self._here)
        mine._prepare()
        return mine

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes [offset, offset + length), fewer only beyond the end. Raises OSError where they cannot be had."""
        stop = min(offset + length, self.size)
        if stop <= offset:
            return b""
        blocks = range(offset // BLOCK, (stop - 1) // BLOCK + 1)
        with self._changed:
            self._look_ahead(blocks)
            while missing := [block for block in blocks if not self._here[block]]:
                self._raise_for(missing)
                if self._is_full(missing):
                    self._drop()
                self._fetch(blocks)
                self._fetch_ahead(blocks)
                self._changed.wait()
            self._fetch_ahead(blocks)
            return _read(self._file.descriptor, offset, stop)

    def _look_ahead(self, blocks: range) -> None:
        """Twice as far with each block that follows the one before; nothing for who jumps about."""
        if blocks.start > self._last + 1 or blocks.stop <= self._last:
            self._ahead = 0
        elif blocks[-1] > self._last:
            self._ahead = min(max(1, self._ahead * 2), IN_FLIGHT)
        self._last = blocks[-1]

    def _raise_for(self, missing: Iterable[int]) -> None:
        for block in missing:
            if error := self._failed.pop(block, None):
                raise error

    def _fetch(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            if not self._here[block] and block not in self._coming:
                self._failed.pop(block, None)
                self._coming.add(block)
                fetchers().put(partial(self._bring, block))

    def _fetch_ahead(self, blocks: range) -> None:
        ahead = range(blocks.stop, min(blocks.stop + self._ahead, self._blocks))
        if not self._is_full(ahead):
            self._fetch(ahead)

    def _is_full(self, blocks: Iterable[int]) -> bool:
        """Whether no more blocks than those that are here already should be held; not so where none of these is new."""
        if all(self._here[block] or block in self._coming for block in blocks):
            return False
        held = sum(self._here) + len(self._coming)
        if not LEAST_BLOCKS <= held < MOST_BLOCKS:
            return held >= MOST_BLOCKS
        disk = shutil.disk_usage(tempfile.gettempdir())
        return disk.used > FULL * disk.total

    def _drop(self) -> None:
        """Begin anew with an empty file: a reader that reads on has no use for what is behind it."""
        self._file = _Unnamed()
        self._here = bytearray(self._blocks)

    def _bring(self, block: int) -> None:
        error: Exception | None = None
        try:
            _Arrival(self, block).wait()
        except Exception as failure:  # told to who waits for this block, if anybody does
            error = failure
        with self._changed:
            self._coming.discard(block)
            if error is not None:
                self._failed[block] = error
            self._changed.notify_all()

    def holds(self, block: int) -> bool:
        """Whether a block is there."""
        return bool(self._here[block])

    def end_of(self, block: int) -> int:
        """The offset of the first byte that is not in a block any more."""
        return min(self.size, (block + 1) * BLOCK)

    def write(self, offset: int, data: bytes) -> object:
        """Put bytes at their place; returns the file that has them, which `complete` wants to know."""
        file, done = self._file, 0
        try:
            while done < len(data):
                done += os.pwrite(file.descriptor, data[done:], offset + done)
        except OSError as error:
            raise PermissionError(
                error.errno, f"temporary file in {tempfile.gettempdir()}: {error.strerror}"
            ) from error
        return file

    def complete(self, block: int, file: object) -> None:
        """Say that all of a block was written into a file; one that was dropped since then holds it for nobody."""
        with self._changed:
            if file is self._file:
                self._here[block] = True
                self._changed.notify_all()


class _Unnamed:
    """A temporary file without a name, which is gone when nobody has it any more."""

    def __init__(self) -> None:
        with tempfile.TemporaryFile() as made:
            self.descriptor = os.dup(made.fileno())

    def __del__(self) -> None:
        os.close(self.descriptor)


class _Arrival:
    """One block on its way, over as many tries as it takes: what arrived before a connection broke is kept."""

    def __init__(self, spool: Spool, block: int) -> None:
        self._spool, self._block = spool, block
        self._first = self._furthest = block * BLOCK
        self._from, self._to = self._first, self._first
        self._file: object = None

    def wait(self) -> None:
        """Fetch the block. Raises OSError where that cannot be done."""
        persist(self._try, lambda: self._furthest)

    def _try(self) -> None:
        with self._spool.remote.turn():
            if not self._spool.holds(self._block):
                start = self._to if self._from <= self._first <= self._to else self._first
                self._spool.remote.fetch(start, self._spool.end_of(self._block), self._spool.stamp, self._take)

    def _take(self, offset: int, data: bytes) -> None:
        """Write what arrived; it makes one run of bytes with what arrived before, unless it begins elsewhere."""
        file = self._spool.write(offset, data)
        if file is not self._file or offset != self._to:
            self._file, self._from = file, offset
        for block in range(-(-max(self._from, offset - BLOCK + 1) // BLOCK), (offset + len(data) - 1) // BLOCK + 1):
            if self._spool.end_of(block) <= offset + len(data):
                self._spool.complete(block, file)
        self._to = offset + len(data)
        self._furthest = max(self._furthest, self._to)


class _Fetchers:
    """The threads of this process that fetch; they end with it, whatever they wait for."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        for _ in range(IN_FLIGHT):
            threading.Thread(target=self._work, name="lora-clip fetching", daemon=True).start()

    def put(self, job: Callable[[], None]) -> None:
        """Have a job done, after those that were put before."""
        self._jobs.put(job)

    def _work(self) -> None:
        while True:
            self._jobs.get()()


_fetchers: list[_Fetchers] = []


def fetchers() -> _Fetchers:
    """The threads of this process; a fork leaves them behind."""
    if not _fetchers or _fetchers[0].process != os.getpid():
        _fetchers[:] = [_Fetchers()]
    return _fetchers[0]


def _read(descriptor: int, offset: int, stop: int) -> bytes:
    data = os.pread(descriptor, stop - offset, offset)
    if not data or offset + len(data) == stop:
        return data
    return data + _read(descriptor, offset + len(data), stop)  # Linux reads 2 GiB at most at once
