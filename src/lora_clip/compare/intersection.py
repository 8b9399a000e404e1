"""The images that outputs have in common: shards of one listing, and in them the same positions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce

import numpy as np
import pyarrow.parquet as pq

from lora_clip.errors import OutputError
from lora_clip.output.rows import Block, row_ids
from lora_clip.search.collection import Collection
from lora_clip.sources.base import Shard


def common(collections: Sequence[Collection]) -> list[np.ndarray]:
    """The row ids (N,) of the images that all outputs hold: an array an output, in one order.

    Raises OutputError where there are none.
    """
    listed = [_by_listing(collection) for collection in collections]
    matched = [
        _common(
            [collection.rows.blocks[shards[listing]] for collection, shards in zip(collections, listed, strict=True)]
        )
        for listing in listed[0]
        if all(listing in shards for shards in listed)
    ]
    if not sum(len(ids[0]) for ids in matched):
        roots = " and ".join(str(collection.root) for collection in collections)
        raise OutputError(f"{roots} have no image in common: compare outputs over the same shards or folder")
    return [np.concatenate(ids) for ids in zip(*matched, strict=True)]


def _by_listing(collection: Collection) -> dict[tuple[str, int], int]:
    """The shards with embeddings, by what is in them; of several that hold the same, the how manieth it is."""
    known = (collection.pictures.shards[shard] for shard in collection.rows.blocks)
    return {listing: shard.id for listing, shard in _numbered(known)}


def _numbered(shards: Iterable[Shard]) -> Iterator[tuple[tuple[str, int], Shard]]:
    seen: Counter[str] = Counter()
    for shard in shards:
        yield (shard.digest, seen[shard.digest]), shard
        seen[shard.digest] += 1


def _common(blocks: Sequence[Block]) -> list[np.ndarray]:
    """Row ids of the positions that all of these files have."""
    positions = [pq.read_table(block.metadata, columns=["position"])["position"].to_numpy() for block in blocks]
    shared_P = reduce(np.intersect1d, positions)
    return [
        row_ids(block.shard, np.intersect1d(positions_P, shared_P, assume_unique=True, return_indices=True)[1])
        for block, positions_P in zip(blocks, positions, strict=True)
    ]
