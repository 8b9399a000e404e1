"""Where reading a tar may start: positions with their byte offsets, as one short text such as `0:0 256:131072`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence


def text_of(pairs: Iterable[Sequence[int]]) -> str:
    """(position, byte offset) pairs, in order, as they are kept: of a million tars there are millions of them."""
    return " ".join(f"{position}:{offset}" for position, offset in pairs)


def last_before(text: str, position: int) -> tuple[int, int]:
    """The point from which a position is reached soonest; the start of the tar where there is none before it."""
    points = text.split()
    at = bisect_right(points, position, key=_position)
    if not at:
        return 0, 0
    found, _, offset = points[at - 1].partition(":")
    return int(found), int(offset)


def _position(point: str) -> int:
    return int(point.partition(":")[0])
