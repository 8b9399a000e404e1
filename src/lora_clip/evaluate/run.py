"""How well the texts of an output find its images, and the images their texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lora_clip.evaluate.figures import Figure, figures
from lora_clip.evaluate.ranks import Ranks, rank
from lora_clip.evaluate.texts import Asked, Wanted, texts_of
from lora_clip.search.collection import Collection
from lora_clip.terminal import align

ROWS_AT_ONCE = 4096
"""Images whose cosines to all texts are held at a time: 80 MB with 5,000 texts."""
HEADER = ("direction", "figure", "value", "95 % interval", "queries")


def evaluate(collection: Collection, wanted: Wanted) -> Sequence[Figure]:
    """The retrieval figures of an output. Raises DataError where no image has a text."""
    ids_N = collection.rows.ids()
    return figures(ranks_of(collection, ids_N, texts_of(collection.rows, ids_N, wanted)))


def ranks_of(collection: Collection, ids_N: np.ndarray, asked: Asked) -> Ranks:
    """At which rank the texts find their images among these rows, and the images their texts."""

    def parts() -> Iterator[np.ndarray]:
        for at in range(0, len(ids_N), ROWS_AT_ONCE):
            yield collection.rows.embeddings(ids_N[at : at + ROWS_AT_ONCE])

    return rank(_embeddings(collection, ids_N, asked), asked.text_of_N, parts)


def _embeddings(collection: Collection, ids_N: np.ndarray, asked: Asked) -> np.ndarray:
    """Embeddings (Q, D) of the texts: what the job made of captions, where it did; else they are embedded now."""
    if asked.row_Q is None or not collection.rows.has_texts or not _are_captions(collection, ids_N, asked):
        return collection.load_encoder().text(asked.texts)
    stored_QD = collection.rows.texts(ids_N[asked.row_Q])
    return stored_QD / np.linalg.norm(stored_QD, axis=1, keepdims=True)


def _are_captions(collection: Collection, ids_N: np.ndarray, asked: Asked) -> bool:
    """Whether this output has those captions too: the texts may come from another, begun before a caption changed."""
    assert asked.row_Q is not None
    captions = [(line["caption"] or "").strip() for line in collection.rows.metadata(ids_N[asked.row_Q])]
    return captions == list(asked.texts)


def table(found: Sequence[Figure]) -> str:
    """The figures as a text table."""
    return "\n".join(align([HEADER, *map(_row, found)]))


def _row(figure: Figure) -> tuple[str, ...]:
    value, low, high = map(figure.written, (figure.value, figure.low, figure.high))
    return figure.direction, figure.name, value, f"{low} to {high}", f"{figure.queries:,}"
