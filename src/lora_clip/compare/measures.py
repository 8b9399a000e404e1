"""How two outputs over the same images differ: cosines, neighbours, and what captions find."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lora_clip.compare.pairs import Pairs
from lora_clip.errors import LoraClipError
from lora_clip.search.collection import Collection
from lora_clip.search.index import without

NEIGHBOURS = 10
SAMPLE = 2000
RANKS = (1, 5, 10)
"""The k of recall@k."""


@dataclass(frozen=True)
class Neighbours:
    """Of sampled images the nearest others, as the first output's row ids (S, k), and how many are the same in both."""

    sampled: Pairs
    first_SK: np.ndarray
    second_SK: np.ndarray
    same_S: np.ndarray


@dataclass(frozen=True)
class Recall:
    """Of sampled captions the rank (S,) at which each output finds an image so called, from 1; 0: not among the first.

    `ids_S` are the first output's rows that the captions belong to.
    """

    captions: list[str]
    ids_S: np.ndarray
    first_S: np.ndarray
    second_S: np.ndarray

    def at(self, ranks_S: np.ndarray, k: int) -> float:
        """The share of captions that find their image among the first k."""
        return float(((ranks_S > 0) & (ranks_S <= k)).mean())


def cosines(first: Collection, second: Collection, pairs: Pairs) -> np.ndarray | None:
    """The cosine (N,) between each image's two embeddings; None where their widths differ and nothing can be said."""
    if first.rows.width != second.rows.width:
        return None
    parts = [
        np.einsum("nd,nd->n", first.rows.embeddings(first_N), second.rows.embeddings(second_N))
        for first_N, second_N in pairs.parts()
    ]
    return np.concatenate(parts)


def neighbours(first: Collection, second: Collection, pairs: Pairs) -> Neighbours:
    """How many of the ten nearest neighbours of sampled images are the same in both outputs."""
    sampled = pairs.sample(SAMPLE)
    first_SK = _nearest(first, sampled.first_N)
    in_first = dict(zip(pairs.second_N.tolist(), pairs.first_N.tolist(), strict=True))
    found_SK = _nearest(second, sampled.second_N)
    second_SK = np.array([[in_first.get(id_, -1) for id_ in line] for line in found_SK.tolist()], np.int64)
    same = [len(set(one) & set(other)) for one, other in zip(first_SK.tolist(), second_SK.tolist(), strict=True)]
    return Neighbours(sampled, first_SK, second_SK.reshape(found_SK.shape), np.array(same))


def _nearest(collection: Collection, ids_S: np.ndarray) -> np.ndarray:
    k = min(NEIGHBOURS, len(collection) - 1)
    found = collection.nearest_ids(collection.rows.embeddings(ids_S), k + 1)
    return without(*found, ids_S, k)[1]


def recall(first: Collection, second: Collection, pairs: Pairs) -> Recall | str:
    """At which rank sampled captions find an image of that caption in each output; or why that cannot be told."""
    sampled = pairs.sample(SAMPLE)
    captions = [(row["caption"] or "").strip() for row in first.rows.metadata(sampled.first_N)]
    captioned = np.array([bool(caption) for caption in captions])
    if not captioned.any():
        return "The images have no captions, so what a text finds cannot be told."
    texts = [caption for caption in captions if caption]
    try:
        ranks = [_ranks(collection, texts) for collection in (first, second)]
    except LoraClipError as error:
        return f"What the captions find cannot be told: {error}"
    return Recall(texts, sampled.first_N[captioned], *ranks)


def _ranks(collection: Collection, texts: list[str]) -> np.ndarray:
    """The rank (S,) of the first image that has the caption which is searched for; 0 where none is near enough."""
    k = max(RANKS)
    _, ids_SK = collection.nearest_ids(collection.encoder.text(texts), k)
    known = np.unique(ids_SK[ids_SK >= 0])
    called = dict(zip(known.tolist(), (row["caption"] for row in collection.rows.metadata(known)), strict=True))
    found = [
        [(called.get(id_) or "").strip() == text for id_ in line] for text, line in zip(texts, ids_SK, strict=True)
    ]
    return np.array([line.index(True) + 1 if True in line else 0 for line in found])
