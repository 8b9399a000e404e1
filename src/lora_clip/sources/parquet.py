"""Images in Parquet files: a column of bytes, or of `{bytes, path}` as Hugging Face's `datasets` writes them.

A shard is a file, a position is a row. Counts are in the footers, so nothing else is read before a worker wants it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from lora_clip.errors import DataError
from lora_clip.sources.base import Shard, numbered
from lora_clip.sources.columns import Roles, find
from lora_clip.sources.expand import expand
from lora_clip.sources.files import UnreadableError, read_below
from lora_clip.sources.names import image_name
from lora_clip.sources.parked import Parked
from lora_clip.sources.parquet_file import Damaged, ParquetTable, Row, holds_bytes, is_bytes
from lora_clip.sources.wanted import Wanted
from lora_clip.types import RawSample, WorkRange

KIND = "parquet"
FILES = Wanted(
    "data.parquet",
    (".parquet",),
    "Parquet file",
    "where it holds the Arrow files of save_to_disk, write them anew: "
    "datasets.load_from_disk(FOLDER)[SPLIT].to_parquet(FILE)",
)
IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "picture", "photo", "content")
OPEN = Parked()


@dataclass(frozen=True)
class ParquetSource:
    """Parquet files named by `data.parquet`; `image_keys` names their column of images."""

    patterns: Any
    image_keys: tuple[str, ...] | None = None

    def shards(self, known: Sequence[Shard]) -> Iterator[Shard]:
        """The files in input order; of each the footer is read when it is asked for."""
        for shard_id, path, earlier in numbered(expand(self.patterns, FILES), known):
            yield scan(shard_id, path, self.image_keys, earlier)

    def read(self, shard: Shard, work: WorkRange) -> Iterator[RawSample]:
        """The rows at the positions of `work`: their images, captions, and other columns as metadata.

        Raises DataError where the file cannot be read.
        """
        return read_rows(shard, shard.path, work, str(Path(shard.path).parent))

    def check(self, shard: Shard) -> str | None:
        """How the file differs from the one that was embedded: by its footer."""
        return difference(shard, scan(shard.id, shard.path, self.image_keys))


def difference(shard: Shard, now: Shard) -> str | None:
    """How a shard differs from what it was, as the end of a sentence."""
    same = now.digest == shard.digest
    return None if same else f"has {now.images} rows now, or others; {shard.images} were embedded"


def scan(shard_id: int, path: str, keys: Sequence[str] | None, earlier: Shard | None = None) -> Shard:
    """A file's shape from its footer alone; what is no whole Parquet file is a shard of one damaged image.

    Raises DataError where it cannot be opened, or has no column of images.
    """
    try:
        table = ParquetTable(path)
    except Damaged as damage:
        return _broken(shard_id, path, str(damage))
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        if earlier is not None and earlier.state.get("stamp") == [*table.stamp]:
            return earlier
        return survey(shard_id, path, table, keys)
    except OSError as error:
        raise _unreadable(path, error) from error
    finally:
        table.close()


def survey(shard_id: int, path: str, table: ParquetTable, keys: Sequence[str] | None, kind: str = KIND) -> Shard:
    """A shard as an open file's footer describes it."""
    column, others = image_column(path, table, keys)
    rows = table.metadata.num_rows
    state = {"stamp": [*table.stamp], "image": column}
    taken, left_out = ({column: rows}, dict.fromkeys(others, rows)) if rows else ({}, {})
    return Shard(shard_id, kind, path, rows, table.bytes_of(column), table.digest(), taken, left_out, state)


def _broken(shard_id: int, path: str, damage: str) -> Shard:
    digest = hashlib.sha256(b"not a whole Parquet file").hexdigest()
    return Shard(shard_id, KIND, path, 1, 0, digest, state={"damage": damage})


def _unreadable(path: str, error: OSError) -> DataError:
    return DataError(f"cannot read shard {path}: {error.strerror or error}")


def image_column(path: str, table: ParquetTable, keys: Sequence[str] | None) -> tuple[str, list[str]]:
    """The column of images, and others that may hold images too.

    Raises DataError where there is none, or several of which none has a usual name.
    """
    able = [field.name for field in table.schema if _may_be_image(field.type)]
    marked = [name for name, kind in table.features().items() if _is_marked(kind) and name in able]
    chosen = find(able, keys) if keys else find(marked, IMAGE_NAMES) or find(able, IMAGE_NAMES)
    chosen = chosen or (None if keys else _only(marked) or _only(able))
    if chosen is None:
        raise DataError(_no_column(path, table, able, keys))
    likely = marked or [name for name in able if find([name], IMAGE_NAMES)]
    return chosen, [name for name in likely if name != chosen]


def _may_be_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and is_bytes(kind.field("bytes").type)
    return is_bytes(kind)


def _is_marked(kind: Any) -> bool:
    return isinstance(kind, dict) and kind.get("_type") == "Image"


def _only(names: Sequence[str]) -> str | None:
    return names[0] if len(names) == 1 else None


def _no_column(path: str, table: ParquetTable, able: Sequence[str], keys: Sequence[str] | None) -> str:
    if able:
        named = f"no column of images called {' or '.join(keys)}" if keys else "several columns that may be images"
        return f"{path} has {named}: type data.image_key={able[0]}, or another of {', '.join(able)}"
    columns = ", ".join(f"{field.name} ({field.type})" for field in table.schema)[:500]
    return (
        f"{path} has no column of image bytes, or of {{bytes, path}}: its columns are {columns}; "
        f"for a column of paths or URLs type data=list data.list={path}"
    )


class _Reader:
    """An open file at a row, in one shard: what is parked between two ranges."""

    def __init__(self, file: str, column: str, start: int) -> None:
        self.table = ParquetTable(file)
        others = [field.name for field in self.table.schema if field.name != column and not holds_bytes(field.type)]
        self.roles = Roles.of(others)
        self.names = _class_names(self.table)
        self.rows = self.table.rows(column, others, start)

    def close(self) -> None:
        self.rows.close()  # type: ignore[attr-defined]
        self.table.close()


def read_rows(shard: Shard, file: str, work: WorkRange, folder: str | None) -> Iterator[RawSample]:
    """The rows of a shard that lies in `file`; images that only have a path are read below `folder`, if anywhere.

    Raises DataError where the file cannot be read.
    """
    if "damage" in shard.state:
        yield from (_damaged(shard, position, shard.state["damage"]) for position in range(work.start, work.stop))
        return
    position = work.start
    place = (file, shard.digest, shard.state["image"])
    reader = OPEN.take((place, position)) or _opened(shard, file, position)
    try:
        while position < work.stop and (row := next(reader.rows, None)) is not None:
            position += 1
            yield _sample(shard, row, reader, folder)
    finally:
        if position == work.stop:
            OPEN.park((place, position), reader)
        else:
            reader.close()


def _opened(shard: Shard, file: str, position: int) -> _Reader:
    try:
        return _Reader(file, shard.state["image"], position)
    except OSError as error:
        raise _unreadable(shard.path, error) from error
    except Damaged as damage:
        raise DataError(f"{shard.path} changed while it was read: {damage}") from damage


def _damaged(shard: Shard, position: int, damage: str, key: str | None = None) -> RawSample:
    return RawSample(shard.id, position, key or str(position), f"{shard.path}/{position}", b"", damage=damage)


def _sample(shard: Shard, row: Row, reader: _Reader, folder: str | None) -> RawSample:
    key = reader.roles.key_of(row.others)
    try:
        image, name = _image(row.cell, folder)
    except (Damaged, UnreadableError) as damage:
        return _damaged(shard, row.number, str(damage), key)
    if key is None and name:
        named = image_name(name)
        key = named.key if named else name
    extras = reader.roles.extras({**row.others, **_named_classes(row.others, reader.names)})
    return RawSample(shard.id, row.number, key or str(row.number), f"{shard.path}/{row.number}", image, extras)


def _image(cell: Any, folder: str | None) -> tuple[bytes, str | None]:
    """The image's bytes and its own file name, if it has one. Raises Damaged or UnreadableError where there is none."""
    if isinstance(cell, Damaged):
        raise cell
    image, name = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    name = name if isinstance(name, str) and name else None
    if image is not None:
        return image, name
    if name is None:
        raise Damaged("the row has no image")
    if folder is None:
        raise Damaged(f"the row has no image but the path {name!r}, which is not among the files")
    try:
        return read_below(folder, name), name
    except UnreadableError as error:
        raise UnreadableError(f"the row has no image but the path {name!r}, which cannot be read: {error}") from error


def _class_names(table: ParquetTable) -> dict[str, list[str]]:
    """The names of classes by column, where `datasets` noted them."""
    found = {name: kind.get("names") for name, kind in table.features().items() if isinstance(kind, dict)}
    return {name: names for name, names in found.items() if isinstance(names, list)}


def _named_classes(record: Any, names: dict[str, list[str]]) -> dict[str, Any]:
    """Beside a class's number its name, as `label_name` beside `label`."""
    return {
        f"{column}_name": words[number]
        for column, words in names.items()
        if isinstance(number := record.get(column), int) and 0 <= number < len(words)
    }
