"""Byte ranges of a file, wherever it lies: the one way in which shards are read.

Local files for now. Another kind of address is one more class here and its scheme in `READERS`.
"""

from __future__ import annotations

import errno
import os
from types import TracebackType
from typing import Protocol, Self

Stamp = tuple[int, int]
"""(size in bytes, time of the last change in ns): the same as long as nobody writes to the file."""


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


READERS: dict[str, type[RangeReader]] = {"file": LocalFile}
"""By the scheme of an address; a path is an address of the scheme `file`."""


def scheme_of(address: str) -> str:
    """`s3` of `s3://bucket/key`; `file` of a path."""
    scheme, mark, _ = address.partition("://")
    return scheme if mark and scheme.isalnum() else "file"


def open_ranges(address: str) -> RangeReader:
    """The file at a path or address. Raises OSError where it cannot be opened."""
    reader = READERS.get(scheme_of(address))
    if reader is None:
        raise OSError(errno.EPROTONOSUPPORT, f"{scheme_of(address)}:// is not read yet", address)
    return reader(address.removeprefix("file://"))  # type: ignore[call-arg]
