"""The images that two outputs have in common: shards of one listing, and in them the same positions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from lora_clip.errors import OutputError
from lora_clip.output.rows import ROWS_AT_ONCE, Block, row_ids
from lora_clip.search.collection import Collection
from lora_clip.sources.base import Shard


@dataclass(frozen=True)
class Pairs:
    """Row ids (N,) of the common images in one output and in the other, in one order."""

    first_N: np.ndarray
    second_N: np.ndarray

    def __len__(self) -> int:
        return len(self.first_N)

    def parts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The ids, some at a time."""
        for at in range(0, len(self), ROWS_AT_ONCE):
            yield self.first_N[at : at + ROWS_AT_ONCE], self.second_N[at : at + ROWS_AT_ONCE]

    def sample(self, count: int, seed: int = 0) -> Pairs:
        """Some of them, drawn without repetition, in order; all where they are fewer."""
        chosen = np.sort(np.random.default_rng(seed).choice(len(self), min(count, len(self)), replace=False))
        return Pairs(self.first_N[chosen], self.second_N[chosen])


def pair(first: Collection, second: Collection) -> Pairs:
    """The images that are in both. Raises OutputError where there are none."""
    others = _by_listing(second)
    matched = [
        _common(first.rows.blocks[shard], second.rows.blocks[others[listing]])
        for listing, shard in _by_listing(first).items()
        if listing in others
    ]
    if not sum(len(first_N) for first_N, _ in matched):
        raise OutputError(
            f"{first.root} and {second.root} have no image in common: compare outputs over the same shards or folder"
        )
    return Pairs(*(np.concatenate(side) for side in zip(*matched, strict=True)))


def _by_listing(collection: Collection) -> dict[tuple[str, int], int]:
    """The shards with embeddings, by what is in them; of several that hold the same, the how manieth it is."""
    known = (collection.pictures.shards[shard] for shard in collection.rows.blocks)
    return {listing: shard.id for listing, shard in _numbered(known)}


def _numbered(shards: Iterable[Shard]) -> Iterator[tuple[tuple[str, int], Shard]]:
    seen: Counter[str] = Counter()
    for shard in shards:
        yield (shard.digest, seen[shard.digest]), shard
        seen[shard.digest] += 1


def _common(first: Block, second: Block) -> tuple[np.ndarray, np.ndarray]:
    """Row ids of the positions that both files have."""
    first_P, second_P = (_positions(block) for block in (first, second))
    _, in_first, in_second = np.intersect1d(first_P, second_P, assume_unique=True, return_indices=True)
    return row_ids(first.shard, in_first), row_ids(second.shard, in_second)


def _positions(block: Block) -> np.ndarray:
    return pq.read_table(block.metadata, columns=["position"])["position"].to_numpy()
