"""A RangeReader as the file object that other libraries want: pyarrow, zipfile."""

from __future__ import annotations

import io
from typing import Any

from lora_clip.io.ranges import RangeReader


class RangeFile(io.RawIOBase):
    """Reads a RangeReader from a position on, and closes it with itself; nothing is buffered.

    `failure` is the error with which the file could not be read, if any: libraries have errors of their own for that,
    and for what they read and cannot make sense of, that cannot be told apart.
    """

    def __init__(self, ranges: RangeReader) -> None:
        self.ranges = ranges
        self.failure: OSError | None = None
        self._position = 0

    def read(self, size: int | None = -1) -> bytes:
        """The next bytes, fewer than `size` only at the end."""
        left = max(0, self.ranges.size - self._position)
        try:
            data = self.ranges.read_at(self._position, left if size is None or size < 0 else min(size, left))
        except OSError as error:
            self.failure = error
            raise
        self._position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with the next bytes; how many there were."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position, counted from the start, from here or from the end."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.ranges.size}[whence]
        if origin + offset < 0:
            raise ValueError(f"position {origin + offset} is before the start of the file")
        self._position = origin + offset
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def close(self) -> None:
        """Close the RangeReader too."""
        if not self.closed:
            self.ranges.__exit__(None, None, None)
        super().close()
