"""How outputs over the same images differ: what texts find in each, cosines and neighbours between two of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lora_clip.compare.intersection import common
from lora_clip.compare.names import name_roots
from lora_clip.errors import DataError, LoraClipError
from lora_clip.evaluate.figures import Figure, figures
from lora_clip.evaluate.ranks import Ranks
from lora_clip.evaluate.run import ranks_of
from lora_clip.evaluate.texts import Asked, Wanted, texts_of
from lora_clip.output.rows import ROWS_AT_ONCE
from lora_clip.search.collection import Collection
from lora_clip.search.exact import NO_ROW
from lora_clip.search.index import without

NEIGHBOURS = 10
SAMPLE = 2000


@dataclass(frozen=True)
class Output:
    """One of the outputs, and what was measured of it.

    `ids_N` are its rows of the common images, in the order of all outputs; a place is a number in that order. `near_SK`
    are the places of the nearest others of sampled images, NO_ROW where not all outputs hold the image. Where texts
    could not be asked for, `ranks` is None, `figures` is empty, and `trouble` says why.
    """

    name: str
    collection: Collection
    ids_N: np.ndarray
    near_SK: np.ndarray
    ranks: Ranks | None = None
    figures: Sequence[Figure] = ()
    trouble: str = ""


@dataclass(frozen=True)
class Comparison:
    """Outputs over the same images, in the order in which they were named.

    `sampled_S` are the places whose neighbours are looked at; `asked` is None where `trouble` says why no text is asked
    for.
    """

    outputs: Sequence[Output]
    sampled_S: np.ndarray
    asked: Asked | None
    trouble: str = ""

    @property
    def images(self) -> int:
        """How many images all outputs hold."""
        return len(self.outputs[0].ids_N)


def measure(collections: Sequence[Collection], wanted: Wanted) -> Comparison:
    """Measure each output on the images that all hold. Raises OutputError where there are none."""
    ids = common(collections)
    count = len(ids[0])
    sampled_S = np.sort(np.random.default_rng(0).choice(count, min(count, SAMPLE), replace=False))
    asked, trouble = _asked(collections[0], ids[0], wanted)
    names = name_roots([collection.root for collection in collections])
    outputs = [
        _measure(name, collection, ids_N, sampled_S, asked)
        for name, collection, ids_N in zip(names, collections, ids, strict=True)
    ]
    return Comparison(outputs, sampled_S, asked, trouble)


def _asked(first: Collection, ids_N: np.ndarray, wanted: Wanted) -> tuple[Asked | None, str]:
    """The texts, the same for all outputs; or why there are none."""
    try:
        return texts_of(first.rows, ids_N, wanted), ""
    except DataError as error:
        return None, f"What texts find cannot be told: {error}"


def _measure(
    name: str, collection: Collection, ids_N: np.ndarray, sampled_S: np.ndarray, asked: Asked | None
) -> Output:
    near_SK = neighbours(collection, ids_N, sampled_S)
    if asked is None:
        return Output(name, collection, ids_N, near_SK)
    try:
        ranks = ranks_of(collection, ids_N, asked)
    except LoraClipError as error:  # its model has gone: the rest can still be told
        return Output(name, collection, ids_N, near_SK, trouble=f"What texts find in {name} cannot be told: {error}")
    return Output(name, collection, ids_N, near_SK, ranks, figures(ranks))


def neighbours(collection: Collection, ids_N: np.ndarray, sampled_S: np.ndarray) -> np.ndarray:
    """The places (S, k) of the nearest others of sampled images; NO_ROW for what is not among the common ones."""
    own_S = ids_N[sampled_S]
    k = min(NEIGHBOURS, len(collection) - 1)
    _, found_SK = without(*collection.nearest_ids(collection.rows.embeddings(own_S), k + 1), own_S, k)
    order_N = np.argsort(ids_N)
    places_SK = order_N[np.searchsorted(ids_N, found_SK, sorter=order_N).clip(max=len(ids_N) - 1)]
    return np.where(ids_N[places_SK] == found_SK, places_SK, NO_ROW)


def kept(first: Output, second: Output) -> np.ndarray:
    """How many of each sampled image's nearest others are the same in both outputs (S,)."""
    same_SKK = first.near_SK[:, :, None] == second.near_SK[:, None, :]
    return (same_SKK & (first.near_SK != NO_ROW)[:, :, None]).sum(axis=(1, 2))


def cosines(first: Output, second: Output) -> np.ndarray | None:
    """The cosine (N,) between each image's two embeddings; None where their widths differ and nothing can be said."""
    one, other = first.collection.rows, second.collection.rows
    if one.width != other.width:
        return None
    parts = [slice(at, at + ROWS_AT_ONCE) for at in range(0, len(first.ids_N), ROWS_AT_ONCE)]
    return np.concatenate(
        [
            np.einsum("nd,nd->n", one.embeddings(first.ids_N[part]), other.embeddings(second.ids_N[part]))
            for part in parts
        ]
    )


def quantiles(cosines_N: np.ndarray) -> tuple[float, float, float]:
    """The median between the two ends of what nine of ten lie between."""
    low, median, high = np.quantile(cosines_N, (0.05, 0.5, 0.95)).tolist()
    return low, median, high
