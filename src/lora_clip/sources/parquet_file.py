"""A Parquet file by rows: what its columns are, and a run of rows from anywhere, damaged places included.

Row groups are read in small steps from their start, whoever asks for which rows, so that damage always costs the same
rows, and a row group of gigabytes no more memory than a small one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from lora_clip.errors import DataError
from lora_clip.io.range_file import RangeFile
from lora_clip.io.ranges import Stamp, open_ranges

STEP_BYTES, MOST_ROWS = 8 << 20, 2048
BUFFER = 1 << 20
MAGIC, TAIL = b"PAR1", 8
MALFORMED = (pa.ArrowException, OSError, ValueError, KeyError, MemoryError, OverflowError)
"""What pyarrow raises for a file that is damaged; of a file that cannot be read, `RangeFile.failure` tells."""


class Damaged(Exception):  # noqa: N818 (it is also a value)
    """Why a file, or some rows of it, cannot be read."""


class Row(NamedTuple):
    """A row: its number in the file, the cell of the main column (or why it cannot be read), and the other columns."""

    number: int
    cell: Any
    others: Mapping[str, Any]


class ParquetTable:
    """An open Parquet file. Raises OSError where it cannot be read, Damaged where it is none."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = RangeFile(open_ranges(path))
        try:
            # checksums of pages are compared where the writer wrote them
            self._parquet = pq.ParquetFile(self._file, buffer_size=BUFFER, page_checksum_verification=True)
        except MALFORMED as error:
            failure = self._file.failure
            self._file.close()
            raise failure or Damaged(f"not a whole Parquet file: {_brief(error)}") from error
        self.metadata = self._parquet.metadata
        self.schema: pa.Schema = self._parquet.schema_arrow

    @property
    def stamp(self) -> Stamp:
        """Of the file."""
        return self._file.ranges.stamp

    def close(self) -> None:
        """Close the file."""
        self._parquet.close()
        self._file.close()

    def digest(self) -> str:
        """Of the footer, which says where each column of each row group lies and how long it is."""
        tail = self._file.ranges.read_at(self._file.ranges.size - TAIL, TAIL)
        length = int.from_bytes(tail[:4], "little")
        footer = self._file.ranges.read_at(self._file.ranges.size - TAIL - length, length)
        return hashlib.sha256(footer).hexdigest()

    def bytes_of(self, column: str) -> int:
        """The bytes of a column, nested ones included, as they lie in the file."""
        return sum(
            self.metadata.row_group(group).column(leaf).total_compressed_size
            for group in range(self.metadata.num_row_groups)
            for leaf in self._leaves(column)
        )

    def _leaves(self, column: str) -> list[int]:
        paths = [self.metadata.schema.column(leaf).path for leaf in range(self.metadata.num_columns)]
        return [leaf for leaf, path in enumerate(paths) if path == column or path.startswith(f"{column}.")]

    def features(self) -> Mapping[str, Any]:
        """What Hugging Face's `datasets` noted of the columns: their kinds, the names of classes."""
        try:
            return dict(json.loads((self.schema.metadata or {})[b"huggingface"])["info"]["features"])
        except (KeyError, TypeError, ValueError):
            return {}

    def rows(self, main: str, others: Sequence[str], start: int = 0) -> Iterator[Row]:
        """The rows from `start` on; only the row groups that hold those that are asked for are read.

        A row that cannot be read has Damaged as its cell; of one whose other columns cannot be read, those are missing.

        Raises DataError where the file cannot be read.
        """
        first = 0
        for group in range(self.metadata.num_row_groups):
            count = self.metadata.row_group(group).num_rows
            if first + count > start:
                wanted = range(max(start - first, 0), count)
                step = self._step(group, main)
                cells = self._cells(group, [main], step, wanted)
                beside = self._cells(group, others, step, wanted) if others else _nothing(wanted)
                for number, cell, more in zip(wanted, cells, beside, strict=True):
                    value = cell if isinstance(cell, Damaged) else cell[main]
                    yield Row(first + number, value, {} if isinstance(more, Damaged) else more)
            first += count

    def _step(self, group: int, main: str) -> int:
        """How many rows are read at a time, from what the footer says of their size."""
        about = self.metadata.row_group(group)
        size = sum(about.column(leaf).total_uncompressed_size for leaf in self._leaves(main))
        return max(1, min(MOST_ROWS, STEP_BYTES * about.num_rows // max(1, size)))

    def _cells(self, group: int, columns: Sequence[str], step: int, wanted: range) -> Iterator[Any]:
        """The `wanted` rows of a row group as mappings of these columns, or Damaged from where they end."""
        done = wanted.start
        reason = "the row group ends early"
        try:
            for first, batch in self._steps(group, columns, step):
                for record in _records(batch, columns, max(0, done - first), wanted.stop - first):
                    done += 1
                    yield record
                if done >= wanted.stop:
                    return
        except MALFORMED as error:
            if self._file.failure is not None:
                raise DataError(f"cannot read {self.path}: {self._file.failure}") from error
            reason = _brief(error)
        damaged = Damaged(f"row group {group} of the Parquet file is damaged: {reason}")
        for _ in range(done, wanted.stop):
            yield damaged

    def _steps(self, group: int, columns: Sequence[str], step: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        first = 0
        # one thread: the other cores are decoding
        batches = self._parquet.iter_batches(step, row_groups=[group], columns=list(columns), use_threads=False)
        for batch in batches:
            yield first, batch
            first += batch.num_rows


def _records(batch: pa.RecordBatch, columns: Sequence[str], start: int, stop: int) -> list[dict[str, Any]]:
    """Rows of a batch; of columns that have one name the first counts."""
    if start >= batch.num_rows:
        return []
    part = batch.slice(start, max(0, stop - start))
    lists = [part.column(part.schema.names.index(name)).to_pylist() for name in columns]
    return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]


def _nothing(wanted: range) -> Iterator[dict[str, Any]]:
    return ({} for _ in wanted)


def _brief(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].removesuffix(".")[:200]


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether values of a type are, or hold, bytes that are no text."""
    if kind.num_fields:
        return any(holds_bytes(kind.field(number).type) for number in range(kind.num_fields))
    return is_bytes(kind)


def is_bytes(kind: pa.DataType) -> bool:
    """Whether values of a type are bytes that are no text."""
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
