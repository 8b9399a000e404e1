"""Exports of outputs, read as their users read them."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lora_clip.output.store import Store
from lora_clip.output.tables import METADATA_SCHEMA


def read_export(kind: str, into: Path) -> pa.Table:
    """All rows of an export, by shard and position."""
    if kind == "lance":
        import lance

        table = lance.dataset(str(into / "embeddings.lance")).to_table()
    else:
        files = sorted((into / "data" if kind == "hf" else into).glob("*.parquet"))
        table = pa.concat_tables([pq.read_table(path, partitioning=None).replace_schema_metadata() for path in files])
    return table.sort_by([("shard", "ascending"), ("position", "ascending")])


def vectors_of(table: pa.Table, column: str = "embedding") -> np.ndarray:
    """A column of vectors (N, D), in its own dtype."""
    lists = table.column(column).combine_chunks()
    return np.asarray(lists.values).reshape(len(table), lists.type.list_size)


def same_as_output(table: pa.Table, root: Path) -> None:
    """Assert that a table holds every finished row of an output once: its metadata, and its vector bit for bit."""
    store = Store(root)
    shards = [number for number, entry in store.snapshot().finished.items() if entry.rows]
    metadata = pa.concat_tables([pq.read_table(store.path("metadata", number)) for number in shards])
    assert table.select(METADATA_SCHEMA.names).to_pylist() == metadata.to_pylist()
    assert np.array_equal(vectors_of(table), np.concatenate([np.load(store.path("img_emb", one)) for one in shards]))


def stamps(folders: Sequence[Path]) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every file below some folders; what goes while it is looked at is left out."""
    found = {}
    for path in (path for folder in folders for path in folder.rglob("*")):
        with suppress(FileNotFoundError):
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                found[str(path)] = (status.st_ino, status.st_mtime_ns)
    return found
