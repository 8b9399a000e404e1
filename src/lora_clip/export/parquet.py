"""Parquet: a file a shard, each whole or not at all, which notes in its footer what it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lora_clip.errors import OutputError
from lora_clip.export.content import COLUMNS, NOTE, Content, check_note
from lora_clip.io.atomic import leftovers, replaced, storage_error

GROUP_BYTES = 64 << 20
"""About so much of a row group are vectors: large enough for a scan, small enough for a reader's memory."""
MOST_ROWS_PER_GROUP = 122_880


class ParquetFolder:
    """A folder of `embeddings_000042.parquet`."""

    def __init__(self, content: Content, into: Path, progress: Callable[[int], None]) -> None:
        self.folder = self.files = into
        self._content, self._progress = content, progress

    def held(self) -> Mapping[int, str]:
        """The token of each file, by shard, from its footer. Raises OutputError where a file is none of ours."""
        held = {}
        for path in sorted(self.files.glob("*.parquet")):
            note = check_note(path, _footer(path), self._content)
            if path != self._path(note["shard"]):
                raise OutputError(f"{path} has another name than lora-clip export gave it: delete it")
            held[int(note["shard"])] = str(note["token"])
        return held

    def bring(self, new: Iterable[int], gone: Iterable[int]) -> None:
        """Replace the files of shards, and delete those of shards that are gone."""
        try:
            self.files.mkdir(exist_ok=True)
            for path in [*leftovers(self.files), *map(self._path, gone)]:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(self.files, error) from error
        for number in new:
            self._write(number)

    def opened_by(self) -> str:
        """As DuckDB and pyarrow read it."""
        return f"duckdb -c \"FROM '{self.files.absolute()}/*.parquet'\""

    def _path(self, number: int) -> Path:
        return self.files / f"embeddings_{number:06d}.parquet"

    def _write(self, number: int) -> None:
        note = self._content.note(shard=number, token=self._content.shards[number].token)
        schema = self._content.schema.with_metadata(note)
        plain = [name for name in schema.names if name not in COLUMNS.values()]  # vectors do not repeat
        group = self._rows_per_group()
        with (
            replaced(self._path(number)) as file,
            pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=plain) as writer,
        ):
            waiting: list[pa.RecordBatch] = []
            for batch in self._content.batches(number):
                waiting.append(batch)
                if sum(map(len, waiting)) >= group:
                    self._flush(writer, schema, waiting)
            self._flush(writer, schema, waiting)

    def _flush(self, writer: pq.ParquetWriter, schema: pa.Schema, waiting: list[pa.RecordBatch]) -> None:
        """Write what waits as one row group."""
        if waiting:
            table = pa.Table.from_batches(waiting).replace_schema_metadata(schema.metadata)
            writer.write_table(table, row_group_size=len(table))
            self._progress(len(table))
            waiting.clear()

    def _rows_per_group(self) -> int:
        content = self._content
        return min(MOST_ROWS_PER_GROUP, GROUP_BYTES // (len(content.kinds) * content.width * content.dtype.itemsize))


def _footer(path: Path) -> bytes | None:
    """What a file says of itself. Raises OutputError where it is no Parquet file."""
    try:
        found: bytes | None = (pq.read_metadata(path).metadata or {}).get(NOTE)
    except (OSError, pa.ArrowException) as error:
        raise OutputError(f"{path} is no Parquet file ({error}): delete it") from error
    return found
