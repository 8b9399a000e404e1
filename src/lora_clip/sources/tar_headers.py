"""The members of a tar by their byte offsets, from any header on; after damage, reading goes on at the next header.

`tarfile` alone (and WebDataset with it) ends silently at a damaged header, and cannot start in the middle.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import Any, NamedTuple

from lora_clip.io.ranges import RangeReader

BLOCK = tarfile.BLOCKSIZE
MAGIC, MAGIC_OFFSET = b"ustar", 257
OCTAL = b"01234567\0"
WINDOW = 8 * BLOCK
MOST_HEADER_BYTES, MOST_HEADER_READS = 1 << 20, 64
SEARCHED_AT_ONCE = 2048 * BLOCK
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}


class Member(NamedTuple):
    """A file in a tar: where its header starts and where its bytes lie; `damage` says why they cannot be read."""

    name: str
    header: int
    offset: int
    size: int
    damage: str | None = None


def members(file: RangeReader, start: int = 0) -> Iterator[Member]:
    """The files of a tar from the header at byte `start` on, with one damaged Member for each unreadable stretch."""
    end = file.size
    offset = start
    window = _Window(file)
    while offset < end:
        if (plain := _plain_at(window, offset)) is not None:
            start, (name, size) = offset + BLOCK, plain
            yield Member(name, offset, start, size, _truncated(start, size, end))
            offset = start + -(-size // BLOCK) * BLOCK
            continue
        try:
            info, following = _header_at(window, offset)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            offset = _after_zeros(file, offset, end)  # the end mark, unless another archive was appended
            continue
        except (tarfile.TarError, ValueError, IndexError, OverflowError) as error:
            following = _next_header(file, offset + BLOCK, end)
            yield Member("", offset, offset, following - offset, _describe_damage(file, offset, following, error))
            offset = following
            continue
        # what is no image to us (folders) is passed over without a place; damage has one, so that it is accounted for
        if (member := _as_member(info, offset, end)) is not None:
            yield member
        offset = following


def _after_zeros(file: RangeReader, offset: int, end: int) -> int:
    """The offset of the first block from `offset` on that is not all zeros, or `end`."""
    for base in range(offset, end, SEARCHED_AT_ONCE):
        chunk = file.read_at(base, SEARCHED_AT_ONCE)
        if rest := chunk.lstrip(b"\0"):
            return base + (len(chunk) - len(rest)) // BLOCK * BLOCK
    return end


class _Window:
    """A tar's headers as the file object that `tarfile` wants, of a bounded length and number for each member.

    So no tar costs all memory or the stack. A window of some blocks is kept: small members share one read.
    """

    def __init__(self, file: RangeReader) -> None:
        self._file = file
        self._base, self._held = 0, b""

    def begin(self, offset: int) -> None:
        """Start with a member whose first header is at `offset`."""
        self._position = offset
        self._bytes, self._reads = MOST_HEADER_BYTES, MOST_HEADER_READS

    def tell(self) -> int:
        """The offset of the next byte."""
        return self._position

    def read(self, size: int) -> bytes:
        """The next bytes. Raises tarfile.ReadError where a member's headers go beyond the bounds."""
        self._bytes -= size
        self._reads -= 1
        if size < 0 or self._bytes < 0 or self._reads < 0:
            raise tarfile.ReadError("extended headers too long or too many")
        at = self._position - self._base
        if at < 0 or at + size > len(self._held):
            self._base, self._held, at = self._position, self._file.read_at(self._position, max(size, WINDOW)), 0
        data = self._held[at : at + size]
        self._position += len(data)
        return data


def _plain_at(window: _Window, offset: int) -> tuple[str, int] | None:
    """Name and size of an ordinary file, as nearly all are, several times faster than by `tarfile`; None for all else.

    Every field must be one that `tarfile` reads in this very way: whatever is not is left to it.
    """
    window.begin(offset)
    block = window.read(BLOCK)
    name, size, told = block[:100].partition(b"\0")[0], block[124:136], block[148:156]
    numbers = block[100:124] + size + block[136:148] + block[329:345]
    if len(block) < BLOCK or block[156:157] not in (b"0", b"\0") or block[345] or numbers.translate(None, OCTAL):
        return None
    size, told = size.partition(b"\0")[0], told.partition(b"\0")[0].strip(b" ")
    if not name or name.endswith(b"/") or not size or not told or told.translate(None, OCTAL):
        return None
    # the sum is taken as if its own eight bytes were spaces
    if int(told, 8) != sum(block) - sum(block[148:156]) + 8 * 32:
        return None
    return name.decode("utf-8", "surrogateescape"), int(size, 8)


class _Cursor(tarfile.TarFile):
    """A TarFile that only serves `TarInfo.fromtarfile`: opening it reads nothing."""

    def next(self) -> None:
        return None


def _header_at(window: _Window, offset: int) -> tuple[tarfile.TarInfo, int]:
    """The member whose header (extended ones included) starts at `offset`, and the offset of the header after it."""
    window.begin(offset)
    served: Any = window
    cursor = _Cursor(fileobj=served, mode="r", encoding="utf-8", errors="surrogateescape")
    info = tarfile.TarInfo.fromtarfile(cursor)
    # a size in base 256 may be negative: following it would go back, and read the same headers for ever
    if info.size < 0 or cursor.offset < info.offset_data:
        raise tarfile.ReadError("member of negative size")
    return info, cursor.offset


def _as_member(info: tarfile.TarInfo, header: int, end: int) -> Member | None:
    if info.isdir():
        return None
    damage = None
    if not info.name:
        damage = "the tar gives this file no name"
    elif not info.isreg() or info.issparse():
        damage = f"the tar holds a {_kind(info)} in place of the file's bytes"
    else:
        damage = _truncated(info.offset_data, info.size, end)
    return Member(info.name, header, info.offset_data, info.size, damage)


def _truncated(start: int, size: int, end: int) -> str | None:
    return f"truncated tar: {size} bytes announced, {max(0, end - start)} there" if start + size > end else None


def _kind(info: tarfile.TarInfo) -> str:
    if info.issparse():
        return "sparse file"
    return "hard link" if info.islnk() else "symbolic link" if info.issym() else "special file"


def _next_header(file: RangeReader, offset: int, end: int) -> int:
    """The offset of the next block that looks like a header, or `end`."""
    for base in range(offset, end, SEARCHED_AT_ONCE):
        chunk = file.read_at(base, SEARCHED_AT_ONCE)
        found = chunk.find(MAGIC)
        while found >= 0:
            # headers begin at multiples of a block; the same bytes elsewhere are somebody's text
            if found % BLOCK == MAGIC_OFFSET:
                return base + found - MAGIC_OFFSET
            found = chunk.find(MAGIC, found + 1)
    return end


def _describe_damage(file: RangeReader, start: int, stop: int, error: Exception) -> str:
    # a whole tar under gzip is the usual case, and has a better answer than "damaged"
    head = file.read_at(0, 8)
    compression = next((name for magic, name in COMPRESSED.items() if head.startswith(magic)), None)
    if start == 0 and compression:
        return f"not a plain tar but {compression} data: unpack it first"
    what = "not a tar archive" if start == 0 and not _looks_like_header(file, 0) else "damaged tar"
    return f"{what}: bytes {start} to {stop} cannot be read ({error})"


def _looks_like_header(file: RangeReader, offset: int) -> bool:
    return file.read_at(offset + MAGIC_OFFSET, len(MAGIC)) == MAGIC
