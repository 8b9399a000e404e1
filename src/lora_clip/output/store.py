"""The contract on disk: `img_emb/`, `metadata/` and `rejects/`, one file a shard, as clip-retrieval's readers expect.

A file appears under its final name whole or not at all: it is written to `parts/`, flushed, and renamed. `parts/` also
holds the ranges of shards that are not complete yet, so the final folders hold nothing that a reader must not see.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lora_clip.io.atomic import leftovers, make_folder, replace_together, storage_error
from lora_clip.output.ledger import CommittedRange, Ledger, by_shard, covers
from lora_clip.types import ImageRow, Reject, WorkRange

METADATA_SCHEMA = pa.schema(
    [
        ("image_path", pa.string()),
        ("key", pa.string()),
        ("shard", pa.int32()),
        ("position", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("caption", pa.string()),
        ("url", pa.string()),
        ("metadata", pa.string()),
    ]
)
REJECTS_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("position", pa.int64()),
        ("key", pa.string()),
        ("stage", pa.string()),
        ("error", pa.string()),
    ]
)
SUFFIXES = {"img_emb": "npy", "metadata": "parquet", "rejects": "parquet"}
COMMIT_ORDER = ("rejects", "metadata", "img_emb")
ROWS_PER_GROUP = 8192


class Store:
    """An output directory: writes ranges, assembles shards, and knows what is committed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.parts = root / "parts"
        self.ledger = Ledger(root / "ranks")

    def path(self, kind: str, shard: int) -> Path:
        """Where a finished shard's file of a kind (img_emb, metadata, rejects) stands."""
        return self.root / kind / f"{kind}_{shard:06d}.{SUFFIXES[kind]}"

    def range_path(self, kind: str, work: WorkRange) -> Path:
        """Where a range's file of a kind stands until its shard is assembled."""
        return self.parts / f"{kind}_{work.shard:06d}_{work.start:09d}-{work.stop:09d}.{SUFFIXES[kind]}"

    def locate(self, kind: str, entry: CommittedRange) -> Path:
        """Where a committed committed's file of a kind is; a final committed may have been taken back into `parts/`."""
        work = self.range_path(kind, work_of(entry))
        return work if work.exists() or not entry.final else self.path(kind, entry.shard)

    def write(
        self, rank: int, work: WorkRange, final: bool, embeddings_ND: np.ndarray, rows: Sequence[ImageRow],
        rejects: Sequence[Reject], seconds: float = 0.0,
    ) -> CommittedRange:  # fmt: skip
        """Commit a range: `embeddings_ND` little-endian floats, a row of metadata each, and its rejects.

        Raises StorageError where the file system refuses; nothing partial remains under a final name.
        """
        assert len(embeddings_ND) == len(rows)
        writers: dict[str, Callable[[BinaryIO], None]] = {}
        if rejects:
            writers["rejects"] = lambda file: write_table([reject_table(rejects)], REJECTS_SCHEMA, file)
        if rows:
            shape, dtype = embeddings_ND.shape, embeddings_ND.dtype
            writers["metadata"] = lambda file: write_table([row_table(rows)], METADATA_SCHEMA, file)
            writers["img_emb"] = lambda file: write_npy([embeddings_ND], shape, dtype, file)
        targets = {kind: self.path(kind, work.shard) if final else self.range_path(kind, work) for kind in writers}
        checksums = self._commit_files(targets, writers)
        entry = CommittedRange(*work, len(rows), len(rejects), checksums, final, round(seconds, 3), _now())
        return self._commit_line(rank, entry)

    def assemble(self, rank: int, shard: int, ranges: Sequence[CommittedRange]) -> CommittedRange:
        """Commit a finished shard from its ranges, which cover it from position 0 in order, and drop them."""
        if len(ranges) == 1 and ranges[0].final:
            return ranges[0]
        rows, rejects = sum(entry.rows for entry in ranges), sum(entry.rejects for entry in ranges)
        kinds = [kind for kind in COMMIT_ORDER if any(kind in entry.checksums for entry in ranges)]
        files = {kind: [self.locate(kind, entry) for entry in ranges if kind in entry.checksums] for kind in kinds}
        writers = {kind: _joiner(kind, files[kind], rows) for kind in kinds}
        checksums = self._commit_files({kind: self.path(kind, shard) for kind in kinds}, writers)
        whole = CommittedRange(shard, 0, ranges[-1].stop, rows, rejects, checksums, True, 0.0, _now())
        whole = self._commit_line(rank, replace(whole, seconds=round(sum(entry.seconds for entry in ranges), 3)))
        self._drop(ranges)
        return whole

    def _drop(self, ranges: Iterable[CommittedRange]) -> None:
        try:
            for entry in ranges:
                for kind in entry.checksums:
                    self.range_path(kind, work_of(entry)).unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(self.parts, error) from error

    def _commit_files(
        self, targets: Mapping[str, Path], writers: Mapping[str, Callable[[BinaryIO], None]]
    ) -> dict[str, str]:
        """Put a range's files in place together, `img_emb` last: who sees an .npy sees its .parquet; their SHA-256."""
        try:
            for folder in (self.parts, *(target.parent for target in targets.values())):
                make_folder(folder)
        except OSError as error:
            raise storage_error(self.root, error) from error
        files = {target: writers[kind] for kind, target in targets.items()}
        return dict(zip(targets, replace_together(files, self.parts), strict=True))

    def _commit_line(self, rank: int, entry: CommittedRange) -> CommittedRange:
        try:
            self.ledger.append(rank, entry)
        except OSError as error:
            raise storage_error(self.ledger.folder, error) from error
        return entry

    def committed(self) -> dict[int, list[CommittedRange]]:
        """What is committed of each shard, and still there: ranges whose files are gone do not count."""
        return by_shard(entry for entry in self.ledger.ranges() if self._present(entry))

    def _present(self, entry: CommittedRange) -> bool:
        return all(self.locate(kind, entry).exists() for kind in entry.checksums)

    def missing(self, shard: int) -> list[str]:
        """The files of a finished shard that the ledger tells of and that are gone."""
        finals = [entry for entry in by_shard(self.ledger.ranges()).get(shard, []) if entry.final]
        paths = (self.locate(kind, entry) for entry in finals for kind in entry.checksums)
        return [str(path.relative_to(self.root)) for path in paths if not path.exists()]

    def recover(self, targets: Mapping[int, int]) -> dict[int, list[CommittedRange]]:
        """Bring an interrupted output into order, and return what is committed of each shard.

        Files that no line of the ledger accounts for are deleted, and a manifest that no longer holds. A final shard of
        which more is wanted than it holds (a `data.limit` was raised) becomes a range in `parts/` again.
        Only for the one process that holds the output's lock. Raises StorageError.
        """
        ranges = self.committed()
        try:
            if any(not covers(ranges.get(shard, []), target) for shard, target in targets.items()):
                for name in ("manifest.json", "report.html"):
                    (self.root / name).unlink(missing_ok=True)
            for shard, found in ranges.items():
                if found[0].final and not covers(found[:1], targets.get(shard, 0)):
                    self._reopen(found[0])
            self._delete_orphans(entry for found in ranges.values() for entry in found)
        except OSError as error:
            raise storage_error(self.root, error) from error
        return ranges

    def _reopen(self, entry: CommittedRange) -> None:
        make_folder(self.parts)
        for kind in sorted(entry.checksums, key=COMMIT_ORDER.index, reverse=True):
            final, work = self.path(kind, entry.shard), self.range_path(kind, work_of(entry))
            if not work.exists():
                final.replace(work)

    def _delete_orphans(self, ranges: Iterable[CommittedRange]) -> None:
        claimed = {self.locate(kind, entry) for entry in ranges for kind in entry.checksums}
        ours = [path for kind in SUFFIXES for path in (self.root / kind).glob(f"{kind}_*.{SUFFIXES[kind]}")]
        for path in (*ours, *self.parts.glob("*_*.*"), *leftovers(self.root)):
            if path not in claimed:
                path.unlink()

    def clear(self) -> None:
        """Delete everything this program wrote into the directory, and nothing else."""
        for folder in (*SUFFIXES, "parts", "ranks", "timeline", "index"):
            shutil.rmtree(self.root / folder, ignore_errors=True)
        for path in leftovers(self.root):
            path.unlink()
        for name in ("manifest.json", "report.html", "search.html", "compare.html", "inputs.jsonl", "fingerprint.json"):
            (self.root / name).unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove `parts/` once nothing is in it."""
        try:
            if self.parts.is_dir() and not any(self.parts.iterdir()):
                self.parts.rmdir()
        except OSError as error:
            raise storage_error(self.parts, error) from error


def work_of(entry: CommittedRange) -> WorkRange:
    """The run of positions of a committed range."""
    return WorkRange(entry.shard, entry.start, entry.stop)


def row_table(rows: Sequence[ImageRow]) -> pa.Table:
    """Metadata rows as a table of METADATA_SCHEMA."""
    return pa.Table.from_pylist([asdict(row) for row in rows], METADATA_SCHEMA)


def reject_table(rejects: Sequence[Reject]) -> pa.Table:
    """Rejects as a table of REJECTS_SCHEMA."""
    return pa.Table.from_pylist([asdict(reject) for reject in rejects], REJECTS_SCHEMA)


def write_npy(arrays: Iterable[np.ndarray], shape: tuple[int, ...], dtype: np.dtype, file: BinaryIO) -> None:
    """An .npy file (format 1.0, C order) of arrays laid one after the other."""
    header = {"descr": dtype.newbyteorder("<").str, "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(file, header)
    for array in arrays:
        file.write(np.ascontiguousarray(array, dtype.newbyteorder("<")).data)


def write_table(tables: Iterable[pa.Table], schema: pa.Schema, file: BinaryIO) -> None:
    """A Parquet file of the tables' rows, in row groups of one size, so that its bytes depend on the rows alone."""
    with pq.ParquetWriter(file, schema) as writer:
        for table in _regroup(tables):
            writer.write_table(table.combine_chunks(), row_group_size=ROWS_PER_GROUP)


def _regroup(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        while sum(len(one) for one in waiting) >= ROWS_PER_GROUP:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, ROWS_PER_GROUP)
            waiting = [joined.slice(ROWS_PER_GROUP)]
    if sum(len(one) for one in waiting):
        yield pa.concat_tables(waiting)


def _joiner(kind: str, files: Sequence[Path], rows: int) -> Callable[[BinaryIO], None]:
    if kind == "img_emb":
        arrays = [np.load(path, mmap_mode="r", allow_pickle=False) for path in files]
        shape, dtype = (rows, arrays[0].shape[1]), arrays[0].dtype
        return lambda file: write_npy(arrays, shape, dtype, file)
    schema = METADATA_SCHEMA if kind == "metadata" else REJECTS_SCHEMA
    return lambda file: write_table((pq.read_table(path, schema=schema) for path in files), schema, file)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
