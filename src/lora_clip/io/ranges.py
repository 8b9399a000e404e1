"""Byte ranges of a file, wherever it lies: the one way in which shards are read."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from lora_clip.io.addresses import scheme_of
from lora_clip.io.remote import RemoteRanges
from lora_clip.io.stamps import Stamp


class RangeReader(Protocol):
    """An open file whose bytes are asked for by offset; safe to share between threads.

    Methods raise OSError where the file cannot be read, also where it is shorter by now than `size`.
    """

    size: int
    stamp: Stamp

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes [offset, offset + length), fewer only beyond `size`."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class LocalFile:
    """A RangeReader of a file of this machine: one `pread` a range, no position and no buffer to share."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(self._descriptor)
        self.size = status.st_size
        self.stamp: Stamp = (status.st_size, status.st_mtime_ns)

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes [offset, offset + length), fewer only beyond `size`."""
        data = os.pread(self._descriptor, length, offset)
        if len(data) == length or offset + len(data) >= self.size:
            return data
        if not data:
            raise OSError(errno.ESTALE, "the file became shorter while it was read")
        return data + self.read_at(offset + len(data), length - len(data))  # Linux reads 2 GiB at most at once

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)


READERS: dict[str, Callable[[str], RangeReader]] = {"file": LocalFile}
"""By the scheme of an address; a path is of the scheme `file`, and what is not here is a remote file."""


def open_ranges(address: str, expected: Stamp | None = None) -> RangeReader:
    """The file at a path or address; a remote one is checked as it is read, against what it is `expected` to be.

    Raises OSError where it cannot be opened, ConfigError for a scheme that is not read.
    """
    reader = READERS.get(scheme_of(address))
    return RemoteRanges(address, expected) if reader is None else reader(address.removeprefix("file://"))
