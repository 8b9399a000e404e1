"""Commits: `img_emb/`, `text_emb/`, `metadata/` and `rejects/`, one file a shard, as clip-retrieval's readers expect.

A file appears under its final name whole or not at all: it is written to `parts/`, flushed, and renamed. `parts/` also
holds the ranges of shards that are not complete yet, so the final folders hold nothing that a reader must not see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from lora_clip.io.atomic import make_folder, replace_together, storage_error
from lora_clip.output.layout import COMMIT_ORDER, Layout
from lora_clip.output.ledger import CommittedRange, Ledger, work_of
from lora_clip.output.provenance import read_inputs
from lora_clip.output.snapshot import Snapshot, take_snapshot
from lora_clip.output.tables import (
    METADATA_SCHEMA,
    REJECTS_SCHEMA,
    joiner,
    reject_table,
    row_table,
    write_npy,
    write_table,
)
from lora_clip.types import ImageRow, Reject, WorkRange

Write = Callable[[BinaryIO], None]


class Counts(NamedTuple):
    """How many rows and rejects a range has, and how many of its rows an embedded caption."""

    rows: int
    rejects: int
    captions: int


@dataclass(frozen=True)
class WrittenRange:
    """What was written of a range, by kind: SHA-256 and size in bytes."""

    checksums: dict[str, str]
    sizes: dict[str, int]


class Store(Layout):
    """An output directory as a rank writes it: commits ranges, and shards assembled from ranges."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.ledger = Ledger(root / "ranks")

    def tag(self) -> str:
        """What tells the files of a range from those that another job makes of the same one."""
        return ""

    def snapshot(self) -> Snapshot:
        """What is committed, and there, now."""
        return take_snapshot(self, self.ledger)

    def write(
        self, rank: int, work: WorkRange, final: bool, embeddings_ND: np.ndarray, rows: Sequence[ImageRow],
        rejects: Sequence[Reject], seconds: float = 0.0, texts_ND: np.ndarray | None = None,
    ) -> CommittedRange:  # fmt: skip
        """Commit a range: `embeddings_ND` little-endian floats, a row of metadata each, and its rejects.

        `texts_ND` are the embeddings of the rows' captions, None where only images are embedded.
        Raises StorageError where the file system refuses; nothing partial remains under a final name.
        """
        # img_emb last: readers pair the two folders by position, so an .npy must never be seen without its .parquet
        writers: dict[str, Write] = {}
        if rejects:
            writers["rejects"] = lambda file: write_table([reject_table(rejects)], REJECTS_SCHEMA, file)
        if rows:
            writers["metadata"] = lambda file: write_table([row_table(rows)], METADATA_SCHEMA, file)
            arrays = (
                {"img_emb": embeddings_ND} if texts_ND is None else {"text_emb": texts_ND, "img_emb": embeddings_ND}
            )
            for kind, array_ND in arrays.items():
                assert len(array_ND) == len(rows)
                writers[kind] = partial(write_npy, [array_ND], array_ND.shape, array_ND.dtype)
        tag = "" if final else self.tag()
        targets = {kind: self.path(kind, work.shard) if final else self.range_path(kind, work, tag) for kind in writers}
        written = self._commit_files(targets, writers)
        captions = 0 if texts_ND is None else sum(bool(row.text) for row in rows)
        return self._commit_line(rank, work, Counts(len(rows), len(rejects), captions), written, final, seconds, tag)

    def inputs(self) -> Iterator[dict[str, Any]]:
        """The input's shards as they were recorded, with what runs have counted of them since."""
        self.ledger.ranges()
        counted = self.ledger.counted()
        for line in read_inputs(self.root):
            found = counted.get(line["id"]) if line.get("images") is None else None
            yield {**line, **found, "wanted": found["images"]} if found else line

    def note_counted(self, rank: int, shard: Mapping[str, Any]) -> None:
        """Record what counting a shard told. Raises StorageError where the file system refuses."""
        try:
            self.ledger.append_counted(rank, shard)
        except OSError as error:
            raise storage_error(self.ledger.folder, error) from error

    def assemble(self, rank: int, shard: int, ranges: Sequence[CommittedRange], before: Snapshot) -> CommittedRange:
        """Commit a finished shard from its ranges, which cover it from position 0 in order, and drop them.

        `before` says where their files are.
        """
        if len(ranges) == 1 and before.finished.get(shard) == ranges[0]:
            return ranges[0]
        counts = Counts(*(sum(getattr(entry, name) for entry in ranges) for name in Counts._fields))
        kinds = [kind for kind in COMMIT_ORDER if any(kind in entry.checksums for entry in ranges)]
        files = {kind: [before.locate(kind, entry) for entry in ranges if kind in entry.checksums] for kind in kinds}
        writers = {kind: joiner(kind, files[kind], counts.rows) for kind in kinds}
        written = self._commit_files({kind: self.path(kind, shard) for kind in kinds}, writers)
        seconds = sum(entry.seconds for entry in ranges)
        # from here on the shard counts as a whole; a crash before the ranges are dropped leaves orphans, not doubles
        whole = self._commit_line(rank, WorkRange(shard, 0, ranges[-1].stop), counts, written, True, seconds)
        self._drop(ranges)
        return whole

    def _drop(self, ranges: Iterable[CommittedRange]) -> None:
        try:
            for entry in ranges:
                for kind in entry.checksums:
                    self.range_path(kind, work_of(entry), entry.tag).unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(self.parts, error) from error

    def _commit_files(self, targets: Mapping[str, Path], writers: Mapping[str, Write]) -> WrittenRange:
        """Put a range's files in place together, in COMMIT_ORDER: who sees an .npy sees its .parquet."""
        try:
            for folder in (self.parts, *(target.parent for target in targets.values())):
                make_folder(folder)
        except OSError as error:
            raise storage_error(self.root, error) from error
        written = replace_together({target: writers[kind] for kind, target in targets.items()}, self.parts)
        found = dict(zip(targets, written, strict=True))
        return WrittenRange({kind: f.sha256 for kind, f in found.items()}, {kind: f.size for kind, f in found.items()})

    def _commit_line(
        self,
        rank: int,
        work: WorkRange,
        counts: Counts,
        written: WrittenRange,
        final: bool,
        seconds: float,
        tag: str = "",
    ) -> CommittedRange:
        """What makes it count: after this line the range is committed, before it never was."""
        finished = datetime.now(UTC).isoformat(timespec="microseconds")
        checksums, sizes = written.checksums, written.sizes
        rows, rejects, captions = counts
        entry = CommittedRange(
            *work, rows, rejects, checksums, final, round(seconds, 3), finished, sizes, captions, tag
        )
        try:
            self._tell(rank, entry)
        except OSError as error:
            raise storage_error(self.ledger.folder, error) from error
        return entry

    def _tell(self, rank: int, entry: CommittedRange) -> None:
        """Say that a range is committed: nothing else is."""
        self.ledger.append(rank, entry)
