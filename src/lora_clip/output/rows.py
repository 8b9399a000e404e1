"""The finished rows of an output: embeddings mapped from their files, metadata read where it is asked for.

A row's id is its shard's id in the upper 32 bits and its number in the shard's files in the lower 32: it stays the same
when shards are added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lora_clip.errors import OutputError
from lora_clip.output.ledger import CommittedRange
from lora_clip.output.store import Store

ROWS_AT_ONCE = 65_536
ROW_BITS = 32
NAMES = ("image_path", "url", "key")
"""Columns by which a row may be called."""
OPEN_FILES = 256


@dataclass(frozen=True)
class Block:
    """The rows of one shard: their files, how many they are, and the SHA-256 of the files of embeddings.

    `texts` are the captions' embeddings with their SHA-256; None where only images are embedded.
    """

    shard: int
    rows: int
    embeddings: Path
    metadata: Path
    checksum: str
    texts: tuple[Path, str] | None = None

    def load(self) -> np.ndarray:
        """Embeddings (rows, D) as they lie on disk, mapped. Raises OutputError where the file is not what it was."""
        return self._load(self.embeddings, self.checksum)

    def load_texts(self) -> np.ndarray:
        """The same of the captions."""
        assert self.texts is not None, "ask has_texts first"
        return self._load(*self.texts)

    def _load(self, path: Path, checksum: str) -> np.ndarray:
        try:
            embeddings_ND = _mapped(path, checksum)
        except (OSError, ValueError) as error:
            raise OutputError(f"{path} cannot be read: {error}") from error
        if embeddings_ND.ndim != 2 or len(embeddings_ND) != self.rows:
            raise OutputError(f"{path} has the shape {embeddings_ND.shape}, {self.rows} rows are expected")
        return embeddings_ND


@lru_cache(OPEN_FILES)
def _mapped(path: Path, checksum: str) -> np.ndarray:
    """The file while it has that checksum: one that was written anew is mapped anew."""
    return np.load(path, mmap_mode="r", allow_pickle=False)


class Rows:
    """All rows of the shards that are finished, in the order of their ids."""

    def __init__(self, root: Path) -> None:
        store = Store(root)
        finished = store.snapshot().finished
        self.blocks: Mapping[int, Block] = {
            shard: _block(store, entry) for shard, entry in finished.items() if entry.rows
        }
        if not self.blocks:
            raise OutputError(f"{root} holds no embeddings: run the job first")

    def __len__(self) -> int:
        return sum(block.rows for block in self.blocks.values())

    @cached_property
    def width(self) -> int:
        """D, of every embedding."""
        return int(next(iter(self.blocks.values())).load().shape[1])

    def ids(self) -> np.ndarray:
        """The ids (N,) of all rows, ascending."""
        return np.concatenate([row_ids(block.shard, np.arange(block.rows)) for block in self.blocks.values()])

    def stream(self, start: Mapping[int, int] | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Ids (N,) and embeddings (N, D) float32, in parts; with `start`, from that row of each shard on."""
        for block in self.blocks.values():
            stored_ND = block.load()
            for first in range((start or {}).get(block.shard, 0), block.rows, ROWS_AT_ONCE):
                part_ND = stored_ND[first : first + ROWS_AT_ONCE].astype(np.float32)
                yield row_ids(block.shard, np.arange(first, first + len(part_ND))), part_ND

    def sample(self, count: int, seed: int = 0) -> np.ndarray:
        """Ids (count,) of rows drawn without repetition from all, in order; of all rows where they are fewer."""
        starts = np.cumsum([0, *(block.rows for block in self.blocks.values())])
        drawn = np.random.default_rng(seed).choice(len(self), min(count, len(self)), replace=False)
        numbers_N = np.sort(drawn)
        which_N = np.searchsorted(starts, numbers_N, side="right") - 1
        shards_N = np.array(list(self.blocks), np.int64)[which_N]
        return row_ids(shards_N, numbers_N - starts[which_N])

    def embeddings(self, ids_N: np.ndarray) -> np.ndarray:
        """Embeddings (N, D) float32 of rows in any order."""
        return self._gather(ids_N, Block.load)

    @cached_property
    def has_texts(self) -> bool:
        """Whether captions are embedded too."""
        return all(block.texts is not None for block in self.blocks.values())

    def texts(self, ids_N: np.ndarray) -> np.ndarray:
        """Embeddings (N, D) float32 of the captions of rows in any order."""
        return self._gather(ids_N, Block.load_texts)

    def _gather(self, ids_N: np.ndarray, load: Callable[[Block], np.ndarray]) -> np.ndarray:
        gathered_ND = np.empty((len(ids_N), self.width), np.float32)
        shards_N, numbers_N = split_ids(ids_N)
        for shard in np.unique(shards_N):
            mine_N = shards_N == shard
            gathered_ND[mine_N] = load(self.blocks[int(shard)])[numbers_N[mine_N]]
        return gathered_ND

    def metadata(self, ids_N: np.ndarray) -> list[dict[str, Any]]:
        """The rows of metadata of these ids, in their order."""
        found: dict[int, dict[str, Any]] = {}
        shards_N, numbers_N = split_ids(ids_N)
        for shard in np.unique(shards_N):
            wanted = np.unique(numbers_N[shards_N == shard])
            lines = _read_rows(self.blocks[int(shard)].metadata, wanted)
            found |= {int(id_): line for id_, line in zip(row_ids(int(shard), wanted), lines, strict=True)}
        return [found[int(id_)] for id_ in ids_N]

    def find(self, name: str) -> int | None:
        """The id of the first row that has this image_path, url or key, or None."""
        for block in self.blocks.values():
            table = pq.read_table(block.metadata, columns=list(NAMES))
            for column in NAMES:
                number = pc.index(table[column], name).as_py()
                if number >= 0:
                    return int(row_ids(block.shard, np.array(number)))
        return None


def _block(store: Store, entry: CommittedRange) -> Block:
    embeddings, metadata = (store.path(kind, entry.shard) for kind in ("img_emb", "metadata"))
    checksums = entry.checksums
    texts = (store.path("text_emb", entry.shard), checksums["text_emb"]) if "text_emb" in checksums else None
    return Block(entry.shard, entry.rows, embeddings, metadata, checksums["img_emb"], texts)


def row_ids(shard: int | np.ndarray, numbers_N: np.ndarray) -> np.ndarray:
    """Ids int64 of rows by their shard and their number in its files."""
    return np.asarray(shard, np.int64) << ROW_BITS | numbers_N.astype(np.int64)


def split_ids(ids_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shards (N,) and numbers (N,) of rows."""
    return ids_N >> ROW_BITS, ids_N & ((1 << ROW_BITS) - 1)


def _read_rows(path: Path, numbers: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
    """Some rows of a Parquet file, of which only the row groups that hold them are read."""
    lines: list[dict[str, Any]] = []
    with pq.ParquetFile(path) as file:
        first = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            here = [int(number) - first for number in numbers if first <= number < first + rows]
            if here:
                lines += file.read_row_group(group).take(here).to_pylist()
            first += rows
    return lines
