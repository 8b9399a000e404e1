"""Which text belongs to which image of an output: its caption, or a field of its metadata such as a label."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from lora_clip.errors import ConfigError, DataError
from lora_clip.evaluate.ranks import NO_TEXT
from lora_clip.output.rows import Rows

CAPTION = "caption"
MOST_TEXTS = 5000
"""Texts that are asked for, as in the usual 5,000-image test sets; more are drawn from, so that cost stays bounded."""


@dataclass(frozen=True)
class Wanted:
    """Which texts are asked for.

    `by` is `caption`, or a field of the images' metadata (JSON); `template` makes a text of a label: "a photo of a {}".
    """

    by: str = CAPTION
    template: str = "{}"
    most: int = MOST_TEXTS

    def __post_init__(self) -> None:
        if "{}" not in self.template:
            raise ConfigError(f"the template {self.template!r} has no {{}} where a text goes: 'a photo of a {{}}'")


@dataclass(frozen=True)
class Asked:
    """The texts (Q) that are asked for, as the template has them, and the number of each image's (N,), or NO_TEXT.

    `row_Q` is the place of an image that has a text for its caption; None where a text is anything but a caption.
    """

    texts: Sequence[str]
    text_of_N: np.ndarray
    row_Q: np.ndarray | None = None


def texts_of(rows: Rows, ids_N: np.ndarray, wanted: Wanted, seed: int = 0) -> Asked:
    """The texts of some rows; drawn from them where there are more than wanted.

    Raises DataError where no image has such a text.
    """
    told = list(_texts(rows, wanted.by))
    found = [told[at] for at in np.searchsorted(rows.ids(), ids_N).tolist()]
    known = sorted({text for text in found if text})
    if not known:
        raise DataError(
            f"no image has a text by {wanted.by!r}: captions (.txt, or `caption` in .json) are what is evaluated by "
            "default; --by FIELD takes a field of the images' .json, such as a label"
        )
    if len(known) > wanted.most:
        drawn = np.random.default_rng(seed).choice(len(known), wanted.most, replace=False)
        known = [known[at] for at in np.sort(drawn).tolist()]
    numbers = {text: number for number, text in enumerate(known)}
    text_of_N = np.array([numbers.get(text, NO_TEXT) for text in found])
    if (wanted.by, wanted.template) == (CAPTION, "{}"):
        first = {text: place for place, text in reversed([*enumerate(found)])}
        return Asked(known, text_of_N, np.array([first[text] for text in known]))
    return Asked([wanted.template.replace("{}", text) for text in known], text_of_N)


def _texts(rows: Rows, by: str) -> Iterator[str]:
    """The text of each row, in the order of their ids; empty where it has none."""
    column = CAPTION if by == CAPTION else "metadata"
    for block in rows.blocks.values():
        for value in pq.read_table(block.metadata, columns=[column])[column].to_pylist():
            yield (value or "").strip() if by == CAPTION else _field(value, by)


def _field(metadata: str | None, name: str) -> str:
    try:
        fields: Any = json.loads(metadata) if metadata else {}
    except ValueError:
        return ""
    value = fields.get(name) if isinstance(fields, dict) else None
    return str(value).strip() if isinstance(value, str | int) else ""
