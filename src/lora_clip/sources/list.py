"""Images named by a list: paths or URLs, with keys and captions of the user's, one a row.

The list is the user's own, so whatever it names is read: paths relative to the list's folder, and absolute ones. A
shard is a run of rows; it is kept by where it starts, so that no process holds the names of all.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from lora_clip.errors import ConfigError, DataError
from lora_clip.io.ranges import open_ranges, scheme_of
from lora_clip.sources.base import Shard, next_id
from lora_clip.sources.columns import URL_NAMES, Roles, find
from lora_clip.sources.expand import expand
from lora_clip.sources.fetch import SCHEMES, fetch
from lora_clip.sources.files import LASTING, UnreadableError, read_file
from lora_clip.sources.list_rows import SUFFIXES, Malformed, RowList, Run, open_list
from lora_clip.sources.names import image_name
from lora_clip.sources.read_ahead import ReadAhead
from lora_clip.sources.wanted import Wanted
from lora_clip.types import RawSample, WorkRange

KIND = "list"
ROWS_PER_SHARD = 10_000
FILES = Wanted("data.list", SUFFIXES, "list")
PATH_NAMES = ("path", "file", "image", "file_path", "filepath", "file_name", "filename", "image_path", *URL_NAMES)
NOT_THERE = LASTING | {errno.EPROTONOSUPPORT}


@dataclass(frozen=True)
class ListSource:
    """Lists named by `data.list`: `.csv`, `.tsv`, `.jsonl`, `.parquet`, or `.txt` with a path or URL a line."""

    patterns: Any
    image_keys: tuple[str, ...] | None = None

    def shards(self, known: Sequence[Shard]) -> Iterator[Shard]:
        """The shards of earlier runs, as they are now; then what the lists hold besides, by runs of rows."""
        paths = expand(self.patterns, FILES)
        mine = [shard for shard in known if shard.kind == KIND and shard.path in paths]
        for shard in sorted(mine, key=lambda shard: shard.id):
            yield _again(shard)
        ids = count(next_id(known))
        for path in paths:
            before = [shard for shard in mine if shard.path == path]
            with _opened(path) as rows:
                yield from (_shard(next(ids), path, run) for run in _new(path, rows, before))

    def read(self, shard: Shard, work: WorkRange) -> Iterator[RawSample]:
        """The images that the rows at the positions of `work` name; what cannot be had is a damaged sample.

        Raises DataError where the list cannot be read, or a local file has an I/O error.
        """
        with _opened(shard.path) as rows:
            found = rows.read(shard.state["start"], work.start, work.stop)
            named = (_named(shard, position, row) for position, row in enumerate(found, start=work.start))
            for one, fetched in ReadAhead[_Named](_fetch, _is_remote)(named):
                yield _sample(shard, one, fetched.result if fetched else None)

    def check(self, shard: Shard) -> str | None:
        """How the rows differ from those that were embedded; the files that they name are not looked at."""
        same = _again(shard).digest == shard.digest
        return None if same else f"has others in the {shard.images} rows from row {shard.state['row']} on"


def _opened(path: str) -> RowList:
    try:
        rows = open_list(path)
    except OSError as error:
        raise DataError(f"cannot read the list {path}: {error.strerror or error}") from error
    if rows.columns is not None and find(rows.columns, PATH_NAMES) is None:
        rows.close()
        raise DataError(
            f"{path} has no column called {', '.join(PATH_NAMES[:3])} or url: its columns are "
            f"{', '.join(rows.columns)[:300]}; a list without a header is a .txt with a path or URL a line"
            + ("; where images are in the file itself, type data=parquet" if path.endswith(".parquet") else "")
        )
    return rows


def _shard(shard_id: int, path: str, run: Run) -> Shard:
    state = {"stamp": [*run.stamp], "start": run.start, "end": run.end, "row": run.row}
    return Shard(shard_id, KIND, path, run.rows, 0, run.digest, state=state)


def _again(shard: Shard) -> Shard:
    """The shard as its list has it now."""
    with _opened(shard.path) as rows:
        if shard.state["stamp"] == [*rows.stamp]:
            return shard
        return _shard(shard.id, shard.path, rows.run(shard.state["start"], shard.state["row"], shard.images))


def _new(path: str, rows: RowList, before: Sequence[Shard]) -> Iterator[Run]:
    """The rows behind those that are known already, by runs."""
    last = max(before, key=lambda shard: shard.state["row"], default=None)
    start, row = (last.state["end"], last.state["row"] + last.images) if last else (rows.start, 0)
    while (run := rows.run(start, row, ROWS_PER_SHARD)).rows:
        yield run
        start, row = run.end, row + run.rows


class _Named(NamedTuple):
    """What a row names: a local path or an address, and its other columns; `damage` where it names nothing."""

    position: int
    address: str
    name: str
    others: Mapping[str, Any]
    damage: str | None = None


def _named(shard: Shard, position: int, row: Mapping[str, Any] | Malformed) -> _Named:
    number = shard.state["row"] + position
    if isinstance(row, Malformed):
        return _Named(position, "", "", {}, f"row {number} of the list cannot be read: {row}")
    column = find((name for name, value in row.items() if value not in (None, "")), PATH_NAMES)
    others = {name: value for name, value in row.items() if name != column}
    name = row[column] if column is not None else None
    if not isinstance(name, str):
        return _Named(position, "", "", others, f"row {number} of the list names no path or URL")
    name = name.removeprefix("file://")
    if scheme_of(name) != "file":
        return _Named(position, name, name, {**others, "url": name})
    return _Named(position, str(Path(shard.path).parent / name), name, others)


def _is_remote(one: _Named) -> bool:
    return one.damage is None and scheme_of(one.address) != "file"


def _fetch(one: _Named) -> bytes:
    """What lies at an address that is not a local path. Raises UnreadableError, DataError."""
    if scheme_of(one.address).lower() in SCHEMES:
        return fetch(one.address)
    try:
        with open_ranges(one.address) as file:
            return file.read_at(0, file.size)
    except ConfigError as error:  # a scheme that is not read, or whose package is not installed
        raise UnreadableError(str(error)) from error
    except OSError as error:
        if error.errno in NOT_THERE:
            raise UnreadableError(error.strerror) from error
        raise DataError(f"cannot read {one.address}: {error.strerror or error}") from error


def _sample(shard: Shard, one: _Named, fetched: Callable[[], bytes] | None) -> RawSample:
    roles = Roles.of(one.others)
    named = None if fetched else image_name(one.name)
    key = roles.key_of(one.others) or (named.key if named else str(shard.state["row"] + one.position))
    path = one.address or f"{shard.path}/{shard.state['row'] + one.position}"
    damage = one.damage
    try:
        if damage is None:
            image = fetched() if fetched else read_file(one.address)
            return RawSample(shard.id, one.position, key, path, image, roles.extras(one.others))
    except UnreadableError as error:
        damage = f"cannot be read: {error}"
    return RawSample(shard.id, one.position, key, path, b"", damage=damage)
