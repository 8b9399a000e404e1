"""`lora-clip evaluate OUTPUT`: how well the texts of an output find its images, and the images their texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lora_clip.diagnose.text import align
from lora_clip.evaluate.figures import Figure, figures
from lora_clip.evaluate.ranks import rank
from lora_clip.evaluate.texts import CAPTION, texts_of
from lora_clip.search.collection import Collection

MOST_TEXTS = 5000
"""Texts that are asked for, as in the usual 5,000-image test sets; more are drawn from, so that cost stays bounded."""
HEADER = ("direction", "figure", "value", "95 % interval", "queries")


def evaluate(
    collection: Collection, by: str = CAPTION, template: str = "{}", most: int = MOST_TEXTS
) -> Sequence[Figure]:
    """The retrieval figures of an output.

    `template` makes a text of a label: "a photo of a {}". Raises DataError where no image has a text.
    """
    texts, text_of_N = texts_of(collection.rows, by, most)
    texts_QD = collection.encoder.text([template.replace("{}", text) for text in texts])

    def parts() -> Iterator[np.ndarray]:
        return (part_ND for _, part_ND in collection.rows.stream())

    return figures(rank(texts_QD, text_of_N, parts))


def table(found: Sequence[Figure]) -> str:
    """The figures as a text table."""
    return "\n".join(align([HEADER, *map(_row, found)]))


def _row(figure: Figure) -> tuple[str, ...]:
    form = "{:.1f}" if figure.name == "median rank" else "{:.3f}"
    value, low, high = map(form.format, (figure.value, figure.low, figure.high))
    return figure.direction, figure.name, value, f"{low} to {high}", f"{figure.queries:,}"
