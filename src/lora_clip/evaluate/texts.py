"""Which text belongs to which image of an output: its caption, or a field of its metadata such as a label."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from lora_clip.errors import DataError
from lora_clip.evaluate.ranks import NO_TEXT
from lora_clip.output.rows import Rows

CAPTION = "caption"


def texts_of(rows: Rows, by: str, most: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """The texts (at most `most`, drawn where there are more), and the number of each row's text, or NO_TEXT.

    `by` is `caption`, or a field of the images' metadata (JSON). Raises DataError where no image has such a text.
    """
    found = list(_texts(rows, by))
    known = sorted({text for text in found if text})
    if not known:
        raise DataError(
            f"no image has a text by {by!r}: captions (.txt, or `caption` in .json) are what is evaluated by default; "
            "--by FIELD takes a field of the images' .json, such as a label"
        )
    if len(known) > most:
        known = [known[at] for at in np.sort(np.random.default_rng(seed).choice(len(known), most, replace=False))]
    numbers = {text: number for number, text in enumerate(known)}
    return known, np.array([numbers.get(text, NO_TEXT) for text in found])


def _texts(rows: Rows, by: str) -> Iterator[str]:
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
