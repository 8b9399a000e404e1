"""What a JPEG's header says, read without decoding: whether a decoder that knows only ordinary ones can have it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

START, END = b"\xff\xd8", b"\xff\xd9"
BASELINE, SCAN, JFIF, ADOBE = 0xC0, 0xDA, 0xE0, 0xEE
OTHER_FRAMES = frozenset(range(0xC1, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Frames that are not baseline (progressive, lossless, arithmetic); between them lie tables, which are no frames."""
GREY, YCBCR = 1, 3
"""The components of the two kinds of images that are ordinary."""
SAMPLINGS = frozenset({0x11, 0x12, 0x21, 0x22})
"""How often luma is sampled for one sample of chroma, across and down, a nibble each."""


class Segment(NamedTuple):
    """A segment of a header: its marker and what it says."""

    marker: int
    content: bytes
    stop: int


def ordinary_size(data: bytes) -> tuple[int, int] | None:
    """The (height, width) of a baseline JPEG of 8 bits in one scan, grey or YCbCr, that has its end; None for others.

    A truncated file has no end. What the scan holds is not looked at.
    """
    frame, transform = b"", None
    for marker, content, stop in segments(data):
        if marker == BASELINE:
            frame = content
        elif marker == ADOBE and content[:5] == b"Adobe" and len(content) >= 12:
            transform = content[11]
        elif marker in OTHER_FRAMES:
            return None
        elif marker == SCAN:
            sound = _is_ordinary(frame, transform) and content[:1] == frame[5:6] and data.find(END, stop) >= 0
            return _size(frame) if sound else None
    return None


def segments(data: bytes, at: int = len(START)) -> Iterator[Segment]:
    """The segments of a JPEG from `at` up to that of the next scan, or as far as they can be followed."""
    at = at if data[: len(START)] == START else len(data)
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # any number of them may come before a marker
            at += 1
            continue
        stop = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        yield Segment(marker, data[at + 4 : stop], stop)
        if marker == SCAN:
            return
        at = stop


def _is_ordinary(frame: bytes, transform: int | None) -> bool:
    """Whether a frame is of 8 bits, grey or YCbCr, in a size and sampling that are common."""
    if len(frame) < 9 or frame[0] != 8 or 0 in _size(frame):
        return False
    parts = [frame[at : at + 3] for at in range(6, len(frame), 3)]
    if frame[5] == GREY:
        return len(parts) == GREY
    identities = bytes(part[0] for part in parts)
    is_ycbcr = identities != b"RGB" if transform is None else transform == 1
    sampled = parts[0][1] in SAMPLINGS and all(part[1] == 0x11 for part in parts[1:] if len(part) == 3)
    return frame[5] == YCBCR == len(parts) and is_ycbcr and sampled


def _size(frame: bytes) -> tuple[int, int]:
    return int.from_bytes(frame[1:3]), int.from_bytes(frame[3:5])
