"""The rows of a list, from anywhere: `.csv`, `.tsv`, `.jsonl` and `.txt` by byte offsets, `.parquet` by row numbers.

A record of text is a line; in `.csv` and `.tsv`, lines up to where a quoted cell ends. Blank lines count for nothing.
Each record is read for itself, so that one that is malformed costs one row.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

from lora_clip.errors import DataError
from lora_clip.io.range_file import RangeFile
from lora_clip.io.ranges import Stamp, open_ranges
from lora_clip.sources.parquet_file import Damaged, ParquetTable, holds_bytes

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
SUFFIXES = (*DELIMITERS, *JSON_LINES, ".txt", ".parquet")
MOST_LINES = 10_000
BUFFER = 1 << 18
UNCLOSED = "unexpected end of data"
BOM = "\ufeff"


class Malformed(Exception):  # noqa: N818 (it is also a value)
    """Why a row cannot be read."""


class Run(NamedTuple):
    """Some rows of a list: where they start and end, the number of the first, how many, and what they hold."""

    start: int
    end: int
    row: int
    rows: int
    digest: str
    stamp: Stamp


class RowList(Protocol):
    """An open list; `columns` are None where each row has its own, `start` is where its rows start."""

    columns: Sequence[str] | None
    start: int
    stamp: Stamp

    def run(self, start: int, row: int, most: int) -> Run:
        """The rows from `start` on, `most` of them at most; `row` is the number of the first."""
        ...

    def read(self, start: int, first: int, stop: int) -> Iterator[Mapping[str, Any] | Malformed]:
        """The rows [first, stop) of those from `start` on."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


def open_list(path: str) -> RowList:
    """The list in a file, by its suffix. Raises OSError where it cannot be read, DataError where it is no list."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path} is no list that is known: give a file of {', '.join(SUFFIXES)}")
    return ParquetList(path) if suffix == ".parquet" else TextList(path, suffix)


class TextList:
    """A list of text; without a header its one column is `path`."""

    def __init__(self, path: str, suffix: str) -> None:
        self.path, self.delimiter, self.json = path, DELIMITERS.get(suffix), suffix in JSON_LINES
        ranges = open_ranges(path)
        self.stamp = ranges.stamp
        self._file = io.BufferedReader(RangeFile(ranges), BUFFER)
        self._end = self.start = 0
        self._header = b""
        self.columns: Sequence[str] | None = None if self.json else ["path"]
        if self.delimiter is not None:
            self._header = next(self._records(0), b"")
            self.start = self._end
            self.columns = self._names()

    def _names(self) -> Sequence[str]:
        try:
            return [name.strip() for name in self._cells(self._header)]
        except Malformed as error:
            raise DataError(f"{self.path}: its first line is no header: {error}") from error

    def run(self, start: int, row: int, most: int) -> Run:
        """The rows from byte `start` on."""
        digest = hashlib.sha256(self._header)
        rows, self._end = 0, start
        for record in islice(self._records(start), most):
            digest.update(b"\n" + record)
            rows += 1
        return Run(start, self._end, row, rows, digest.hexdigest(), self.stamp)

    def read(self, start: int, first: int, stop: int) -> Iterator[Mapping[str, Any] | Malformed]:
        """The rows [first, stop) of those from byte `start` on."""
        for record in islice(self._records(start), first, stop):
            try:
                yield self._row(record)
            except Malformed as error:
                yield error

    def _records(self, offset: int) -> Iterator[bytes]:
        """The records from a byte offset on, without their ends of line; `_end` is where the last of them ended.

        Raises DataError where a quoted cell is opened and never closed, or the file cannot be read.
        """
        self._file.seek(offset)
        self._end = offset
        try:
            for line in self._file:
                quoted = self.delimiter is not None and b'"' in line and self._is_open(line)
                whole = self._closed(line) if quoted else line
                self._end += len(whole)
                if record := whole.rstrip(b"\r\n"):
                    yield record
        except OSError as error:
            raise DataError(f"cannot read the list {self.path}: {error.strerror or error}") from error

    def _closed(self, line: bytes) -> bytes:
        """A record that goes on behind its first line, whole."""
        lines = [line]
        for more in islice(self._file, MOST_LINES):
            lines.append(more)
            # only a quote closes a quoted cell
            if b'"' in more and not self._is_open(b"".join(lines)):
                return b"".join(lines)
        shown = line[:60].decode("utf-8", "replace").strip()
        raise DataError(f"{self.path}: a quote is opened and never closed, in the row that begins with {shown!r}")

    def _is_open(self, record: bytes) -> bool:
        try:
            next(csv.reader(_lines(_text(record)), delimiter=self.delimiter or ",", strict=True), None)
        except csv.Error as error:
            return UNCLOSED in str(error)
        return False

    def _row(self, record: bytes) -> Mapping[str, Any]:
        """A record by columns, empty cells left out. Raises Malformed."""
        if self.json:
            return _parsed(record)
        if self.delimiter is None:
            return {"path": _text(record).removeprefix(BOM)}
        cells, names = self._cells(record), self.columns or ()
        if len(cells) != len(names):
            raise Malformed(
                f"it has {len(cells)} cells where the header has {len(names)}; "
                "a cell with a separator in it goes into quotes"
            )
        return {name: cell for name, cell in zip(names, cells, strict=True) if cell != ""}

    def _cells(self, record: bytes) -> Sequence[str]:
        try:
            return next(csv.reader(_lines(_text(record).removeprefix(BOM)), delimiter=self.delimiter or ","), [])
        except csv.Error as error:
            raise Malformed(str(error)) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _lines(text: str) -> Iterable[str]:
    """What csv.reader takes for a record: its lines, with their ends."""
    return io.StringIO(text, newline="\n")


def _text(record: bytes) -> str:
    return record.decode("utf-8", "surrogateescape")


def _parsed(record: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(record.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError) as error:
        raise Malformed(f"it is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise Malformed("it is no JSON object")
    return found


class ParquetList:
    """A list in a Parquet file: the columns that hold no bytes."""

    start = 0

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._table = ParquetTable(path)
        except Damaged as damage:
            raise DataError(f"{path} is {damage}") from damage
        self.stamp = self._table.stamp
        self.columns: Sequence[str] | None = [one.name for one in self._table.schema if not holds_bytes(one.type)]

    def run(self, start: int, row: int, most: int) -> Run:
        """The rows from row `start` on; a file that was written anew holds others."""
        rows = max(0, min(most, self._table.metadata.num_rows - start))
        digest = hashlib.sha256(f"{self._table.digest()} {start} {rows}".encode()).hexdigest()
        return Run(start, start + rows, row, rows, digest, self.stamp)

    def read(self, start: int, first: int, stop: int) -> Iterator[Mapping[str, Any] | Malformed]:
        """The rows [start + first, start + stop)."""
        main, *others = self.columns or ()
        for row in islice(self._table.rows(main, others, start + first), stop - first):
            if isinstance(row.cell, Damaged):
                yield Malformed(str(row.cell))
            else:
                yield {main: row.cell, **row.others}

    def close(self) -> None:
        """Close the file."""
        self._table.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
