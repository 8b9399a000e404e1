"""What each rank has committed: one JSON line a range, appended after the range's files are safely in place.

A committed range is a run of positions of a shard with its files. Most shards are one range; a shard that several
workers share is several until it is assembled. A line that a power cut tore is no line: its files are then orphans,
and made anew. Before the first range of a shard that nobody had counted when the run began stands a line with what
counting it told, `{"counted": …}`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lora_clip.io.atomic import append_line, make_folder
from lora_clip.types import WorkRange


@dataclass(frozen=True)
class CommittedRange:
    """A committed run of positions [start, stop): how many became rows and rejects, and its files' SHA-256.

    `final` says that the files were put into their final folders. `seconds` is the time from the range's first batch to
    its commit, `finished` the UTC time of the commit, `sizes` the files' bytes (format 1 knew none). Where texts are
    embedded, `captions` says how many of the rows have one. `tag` is in the names of its files where several jobs may
    have made the same range.
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
    sizes: Mapping[str, int] = field(default_factory=dict)
    captions: int = 0
    tag: str = ""


@dataclass(frozen=True)
class _Parsed:
    """What was read of a rank's file: its whole lines up to the byte `end`."""

    end: int = 0
    ranges: tuple[CommittedRange, ...] = ()
    counted: tuple[Mapping[str, Any], ...] = ()


class Ledger:
    """The files `ranks/rank_00003.jsonl`; each rank appends to its own, anyone reads all.

    What was parsed once is kept: lines are only ever appended.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._parsed: dict[Path, _Parsed] = {}

    def append(self, rank: int, entry: CommittedRange) -> None:
        """Add a line and wait until it is on disk."""
        self._append(rank, line_of(entry))

    def append_all(self, rank: int, entries: Iterable[CommittedRange]) -> None:
        """Add several lines."""
        if lines := [json.dumps(line_of(entry)).encode() for entry in entries]:
            make_folder(self.folder)
            append_line(self.folder / f"rank_{rank:05d}.jsonl", b"\n".join(lines))

    def append_counted(self, rank: int, shard: Mapping[str, Any]) -> None:
        """The same of what counting a shard told."""
        self._append(rank, {"counted": shard})

    def _append(self, rank: int, record: Mapping[str, Any]) -> None:
        make_folder(self.folder)
        append_line(self.folder / f"rank_{rank:05d}.jsonl", json.dumps(record).encode())

    def ranges(self) -> list[CommittedRange]:
        """All committed ranges of all ranks and runs, in no particular order."""
        return [entry for path in sorted(self.folder.glob("rank_*.jsonl")) for entry in self._ranges_of(path)]

    def counted(self) -> dict[int, Mapping[str, Any]]:
        """The shards that runs had to count, by id, as far as `ranges` has read: what was found last."""
        return {shard["id"]: shard for parsed in self._parsed.values() for shard in parsed.counted}

    def forget(self) -> None:
        """Read from the start the next time: the files were replaced."""
        self._parsed.clear()

    def _ranges_of(self, path: Path) -> tuple[CommittedRange, ...]:
        before = self._parsed.get(path, _Parsed())
        if path.stat().st_size < before.end:
            before = _Parsed()
        with path.open("rb") as file:
            file.seek(before.end)
            appended = file.read()
        whole, newline, last = appended.rpartition(b"\n")
        end = before.end + len(whole) + len(newline)
        told = (*before.counted, *_parse_counted(whole))
        self._parsed[path] = now = _Parsed(end, (*before.ranges, *_parse_lines(whole)), told)
        return (*now.ranges, *_parse_lines(last))  # the last one may still be growing


def parse(text: bytes) -> _Parsed:
    """What whole lines tell."""
    return _Parsed(len(text), tuple(_parse_lines(text)), tuple(_parse_counted(text)))


def _parse_counted(text: bytes) -> Iterator[Mapping[str, Any]]:
    return (json.loads(line)["counted"] for line in text.splitlines() if line.startswith(COUNTED) and _is_json(line))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _parse_lines(text: bytes) -> Iterator[CommittedRange]:
    return (entry for line in text.splitlines() if (entry := _parse(line)) is not None)


COUNTED = b'{"counted": '
FIELDS = tuple(field.name for field in fields(CommittedRange))


def _parse(line: bytes) -> CommittedRange | None:
    try:
        return range_of(json.loads(line))
    except (ValueError, KeyError, TypeError):
        return None


def range_of(record: Mapping[str, Any]) -> CommittedRange:
    """The range that a line tells of. Raises TypeError where it is none."""
    return CommittedRange(**{name: record[name] for name in FIELDS if name in record})


def line_of(entry: CommittedRange) -> dict[str, Any]:
    """The line of a range."""
    return asdict(entry)


def by_shard(ranges: Iterable[CommittedRange]) -> dict[int, list[CommittedRange]]:
    """The ranges of each shard that together say what is done: from left to right, none overlapping another.

    Of finished shards that were finished again (someone deleted the files, or more was wanted) the latest counts. Where
    ranges overlap (an assembled shard and the ranges it was made of) the longest from a position on counts.
    """
    found: dict[int, list[CommittedRange]] = defaultdict(list)
    for entry in sorted(ranges, key=lambda entry: entry.finished, reverse=True):
        if not (entry.final and any(later.final for later in found[entry.shard])):
            found[entry.shard].append(entry)
    return {shard: _disjoint(found[shard]) for shard in sorted(found)}


def _disjoint(ranges: Sequence[CommittedRange]) -> list[CommittedRange]:
    chosen: list[CommittedRange] = []
    for entry in sorted(ranges, key=lambda entry: (entry.start, -entry.stop, not entry.final)):
        if not chosen or entry.start >= chosen[-1].stop:
            chosen.append(entry)
    return chosen


def prefix(ranges: Sequence[CommittedRange]) -> list[CommittedRange]:
    """Of disjoint ranges, in order, those from position 0 to the first gap: what can be assembled."""
    run: list[CommittedRange] = []
    for entry in ranges:
        if entry.start > prefix_length(run):
            break
        run.append(entry)
    return run


def prefix_length(run: Sequence[CommittedRange]) -> int:
    """How many positions a run of ranges without a gap holds from position 0 on."""
    return run[-1].stop if run else 0


def covers(ranges: Sequence[CommittedRange], target: int) -> bool:
    """Whether disjoint ranges, in order, hold every position [0, target)."""
    return prefix_length(prefix(ranges)) >= target


def work_of(entry: CommittedRange) -> WorkRange:
    """The run of positions of a committed range."""
    return WorkRange(entry.shard, entry.start, entry.stop)
