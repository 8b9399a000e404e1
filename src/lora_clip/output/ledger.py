"""What each rank has committed: one JSON line a piece, appended after the piece's files are safely in place.

A piece is a run of positions of a shard with its files. Most shards are one piece; a shard that several workers share
is several until it is assembled. A line that a power cut tore is no line: its files are then orphans, and made anew.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Piece:
    """A committed run of positions [start, stop): how many became rows and rejects, and its files' SHA-256.

    `final` says that the files stand in their final folders. `seconds` is the time from the piece's first batch to its
    commit, `finished` the UTC time of the commit.
    """

    shard: int
    start: int
    stop: int
    rows: int
    rejects: int
    checksums: Mapping[str, str]
    final: bool
    seconds: float = 0.0
    finished: str = ""


class Ledger:
    """The files `ranks/rank_00003.jsonl`; each rank appends to its own, anyone reads all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def append(self, rank: int, piece: Piece) -> None:
        """Add a line and wait until it is on disk."""
        make_folder(self.folder)
        path = self.folder / f"rank_{rank:05d}.jsonl"
        fresh = not path.exists()
        with path.open("ab+") as file:
            line = json.dumps(asdict(piece)).encode() + b"\n"
            file.write(line if _ends_clean(path) else b"\n" + line)
            file.flush()
            os.fsync(file.fileno())
        if fresh:
            sync_folder(self.folder)

    def pieces(self) -> list[Piece]:
        """All committed pieces of all ranks and runs, in no particular order."""
        lines = (line for path in sorted(self.folder.glob("rank_*.jsonl")) for line in path.read_bytes().splitlines())
        return [piece for line in lines if (piece := _parse(line)) is not None]


def make_folder(folder: Path) -> None:
    """Make a folder where it is missing, durably; its parent must be there."""
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in the folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _ends_clean(path: Path) -> bool:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 1))
        return file.read(1) in (b"", b"\n")


def _parse(line: bytes) -> Piece | None:
    try:
        record = json.loads(line)
        return Piece(**{field.name: record[field.name] for field in fields(Piece)})
    except (ValueError, KeyError, TypeError):
        return None


def by_shard(pieces: Iterable[Piece]) -> dict[int, list[Piece]]:
    """The pieces of each shard that together say what is done: from left to right, none overlapping another.

    Of finished shards that were finished again (someone deleted the files, or more was wanted) the latest counts. Where
    pieces overlap (an assembled shard and the pieces it was made of) the longest from a position on counts.
    """
    found: dict[int, list[Piece]] = defaultdict(list)
    for piece in sorted(pieces, key=lambda piece: piece.finished, reverse=True):
        if not (piece.final and any(later.final for later in found[piece.shard])):
            found[piece.shard].append(piece)
    return {shard: _disjoint(found[shard]) for shard in sorted(found)}


def _disjoint(pieces: Sequence[Piece]) -> list[Piece]:
    chosen: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: (piece.start, -piece.stop, not piece.final)):
        if not chosen or piece.start >= chosen[-1].stop:
            chosen.append(piece)
    return chosen


def leading(pieces: Sequence[Piece]) -> list[Piece]:
    """Of disjoint pieces, in order, those from position 0 to the first gap: what can be assembled."""
    run: list[Piece] = []
    for piece in pieces:
        if piece.start > held(run):
            break
        run.append(piece)
    return run


def held(run: Sequence[Piece]) -> int:
    """How many positions a run of pieces without a gap holds from position 0 on."""
    return run[-1].stop if run else 0


def covers(pieces: Sequence[Piece], target: int) -> bool:
    """Whether disjoint pieces, in order, hold every position [0, target)."""
    return held(leading(pieces)) >= target
