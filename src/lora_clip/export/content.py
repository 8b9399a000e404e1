"""An output as a table: its vectors as a column of fixed-size lists beside its metadata, read a few rows at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lora_clip.errors import OutputError
from lora_clip.output.manifest import read_manifest
from lora_clip.output.provenance import flatten, require_fingerprint
from lora_clip.output.store import Store
from lora_clip.output.tables import METADATA_SCHEMA

NOTE = b"lora_clip"
"""The key of the schema's metadata under which an export tells, as JSON, what its vectors are of."""
VERSION = 1
BATCH_ROWS = 8192
IMAGE, TEXT = "img_emb", "text_emb"
COLUMNS = {IMAGE: "embedding", TEXT: "text_embedding"}
"""The column that the vectors of a folder become."""


@dataclass(frozen=True)
class ShardContent:
    """A finished shard of an output: its files by kind, and a token that changes whenever one of them does."""

    number: int
    rows: int
    files: Mapping[str, Path]
    token: str


class Content:
    """The finished shards of an output, and the schema of the table that they are.

    Raises OutputError where `root` holds no output, or no embeddings yet.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fingerprint = require_fingerprint(root)
        self.model = (read_manifest(root) or {}).get("model")
        self.kinds = tuple(kind for kind in COLUMNS if (root / kind).is_dir())
        self.shards = {one.number: one for one in _finished(root, self.kinds)}
        if not self.shards:
            raise OutputError(f"{root} holds no embeddings: run the job first")
        self.width, self.dtype = self._shape()
        vectors = pa.list_(pa.float16() if self.dtype.itemsize == 2 else pa.float32(), self.width)
        columns = [*METADATA_SCHEMA, *((COLUMNS[kind], vectors) for kind in self.kinds)]
        self.schema = pa.schema(columns, metadata=self.note())

    def _shape(self) -> tuple[int, np.dtype]:
        """Width and dtype of all vectors, from those of a shard."""
        shard = next(iter(self.shards.values()))
        try:
            first_ND = _load(shard.files[IMAGE])
        except (OSError, ValueError) as error:
            raise self._unreadable(shard.number, error) from error
        return int(first_ND.shape[1]), first_ND.dtype

    def _unreadable(self, number: int, error: Exception) -> OutputError:
        return OutputError(
            f"shard {number} of {self.root} cannot be read ({error}): is a job at work there? Wait for its end, "
            "then type the same command again"
        )

    @property
    def rows(self) -> int:
        """How many rows the table has."""
        return sum(shard.rows for shard in self.shards.values())

    def note(self, **more: Any) -> dict[bytes, bytes]:
        """What an export tells of itself in its schema's metadata."""
        told = {"version": VERSION, "fingerprint": self.fingerprint, "model": self.model, **more}
        return {NOTE: json.dumps(told, sort_keys=True).encode()}

    def batches(self, number: int) -> Iterator[pa.RecordBatch]:
        """A shard's rows, in their order, a few thousand at a time. Raises OutputError where a file is not sound."""
        shard, first = self.shards[number], 0
        try:
            vectors = {kind: _load(shard.files[kind]) for kind in self.kinds if kind in shard.files}
            with pq.ParquetFile(shard.files["metadata"]) as file:
                for metadata in file.iter_batches(BATCH_ROWS):
                    stop = first + len(metadata)
                    yield self._batch(metadata, {kind: one[first:stop] for kind, one in vectors.items()})
                    first = stop
        except (OSError, ValueError) as error:
            raise self._unreadable(number, error) from error
        if first != shard.rows or any(len(one) != shard.rows for one in vectors.values()):
            raise OutputError(f"shard {number} of {self.root} is not what its ledger says: lora-clip verify tells more")

    def _batch(self, metadata: pa.RecordBatch, vectors: Mapping[str, np.ndarray]) -> pa.RecordBatch:
        columns = [metadata.column(field.name).cast(field.type) for field in METADATA_SCHEMA]
        for kind in self.kinds:
            field = self.schema.field(COLUMNS[kind])
            columns.append(
                _lists(vectors[kind], field.type) if kind in vectors else pa.nulls(len(metadata), field.type)
            )
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


def _finished(root: Path, kinds: Sequence[str]) -> Iterator[ShardContent]:
    """Shards that are finished and have rows, by number."""
    store = Store(root)
    for number, entry in store.snapshot().finished.items():
        if entry.rows:
            files = {kind: store.path(kind, number) for kind in (IMAGE, "metadata")}
            if TEXT in kinds and (texts := root / TEXT / f"{TEXT}_{number:06d}.npy").exists():
                files[TEXT] = texts
            yield ShardContent(number, entry.rows, files, _token(entry.checksums, files, kinds))


def _token(checksums: Mapping[str, str], files: Mapping[str, Path], kinds: Sequence[str]) -> str:
    """Sixteen hexadecimal digits of the files' checksums; of a file that the ledger has none of, its size and time."""
    told = {kind: checksums.get(kind) or _stamp(path) for kind, path in files.items()}
    return hashlib.sha256(json.dumps([VERSION, told, list(kinds)], sort_keys=True).encode()).hexdigest()[:16]


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _load(path: Path) -> np.ndarray:
    """Vectors (N, D) as they lie on disk, mapped. Raises OSError or ValueError."""
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _lists(vectors_ND: np.ndarray, type_: pa.FixedSizeListType) -> pa.FixedSizeListArray:
    """Vectors as an Arrow array of lists; null where there is none (a text's row of an image without a text)."""
    flat = pa.array(np.ascontiguousarray(vectors_ND).reshape(-1))
    lacking_N = ~(np.isfinite(vectors_ND).all(axis=1) & vectors_ND.any(axis=1))
    mask = pa.array(lacking_N) if lacking_N.any() else None
    return pa.FixedSizeListArray.from_arrays(flat, type=type_, mask=mask)


def check_note(place: Path, told: bytes | None, content: Content) -> dict[str, Any]:
    """What an earlier export noted in its schema's metadata.

    Raises OutputError where it is none of ours, or holds vectors of another kind than `content`: they are never mixed.
    """
    note = json.loads(told) if told else {}
    if "fingerprint" not in note:
        raise OutputError(f"{place} was not written by lora-clip export: give another --into")
    before, now = dict(flatten(note["fingerprint"])), dict(flatten(content.fingerprint))
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if changed:
        lines = [f"  {key}: {before.get(key)} there, {now.get(key)} in {content.root}" for key in changed]
        raise OutputError(
            f"{place} holds embeddings of another kind, and one export holds one kind:\n"
            + "\n".join(lines)
            + "\nGive another --into, or delete it"
        )
    return dict(note)
