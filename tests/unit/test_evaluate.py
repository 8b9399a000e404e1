"""Retrieval figures against an independent computation, query by query, on plain lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.embeddings import vectors, write_output
from lora_clip.errors import DataError
from lora_clip.evaluate.figures import figures
from lora_clip.evaluate.ranks import NO_TEXT, Ranks, rank
from lora_clip.evaluate.texts import texts_of
from lora_clip.output.rows import Rows


def by_hand(cosines_QN: np.ndarray, text_of: list[int]) -> Ranks:
    """The definitions, spelled out: sort, wrong ones first among equals, and walk down the list."""
    first, precision, image = [], [], []
    for text, line in enumerate(cosines_QN.tolist()):
        order = sorted(range(len(line)), key=lambda at: (-line[at], text_of[at] == text))
        hits = [place for place, at in enumerate(order, 1) if text_of[at] == text]
        first.append(hits[0])
        precision.append(sum(number / place for number, place in enumerate(hits, 1)) / len(hits))
    for at, text in enumerate(text_of):
        if text != NO_TEXT:
            column = cosines_QN[:, at].tolist()
            order = sorted(range(len(column)), key=lambda other: (-column[other], other == text))
            image.append(order.index(text) + 1)
    return Ranks(np.array(first), np.array(precision), np.array(image))


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 6), st.integers(0, 2**16), st.booleans())
def test_ranks_are_those_of_the_definition(data: st.DataObject, texts: int, seed: int, coarse: bool) -> None:
    extra = data.draw(st.lists(st.integers(-1, texts - 1), max_size=20))
    text_of = data.draw(st.permutations([*range(texts), *extra]))
    rng = np.random.default_rng(seed)
    texts_QD = rng.integers(-1, 2, (texts, 2)) if coarse else rng.normal(size=(texts, 4))  # coarse: many equal cosines
    images_ND = rng.integers(-1, 2, (len(text_of), texts_QD.shape[1])) if coarse else rng.normal(size=(len(text_of), 4))
    cut = data.draw(st.integers(0, len(text_of)))
    parts = [part for part in (images_ND[:cut], images_ND[cut:]) if len(part)]
    found = rank(texts_QD.astype(np.float32), np.array(text_of), lambda: [part.astype(np.float32) for part in parts])
    wanted = by_hand(texts_QD.astype(np.float32) @ images_ND.astype(np.float32).T, text_of)
    np.testing.assert_array_equal(found.first_Q, wanted.first_Q)
    np.testing.assert_allclose(found.precision_Q, wanted.precision_Q)
    np.testing.assert_array_equal(found.text_N, wanted.text_N)


def test_a_model_to_which_all_looks_alike_finds_nothing() -> None:
    images_ND = np.ones((50, 4), np.float32) / 2
    found = figures(rank(images_ND[:5], np.arange(50) % 5, lambda: [images_ND]))
    values = {(figure.direction, figure.name): figure.value for figure in found}
    assert values["text to image", "recall@10"] == 0 and values["image to text", "recall@1"] == 0


def test_an_interval_holds_its_figure_and_narrows_with_more_queries() -> None:
    few, many = (
        figures(Ranks(np.tile([1, 1, 3, 20], times), np.tile([1.0, 0.2], 2 * times), np.tile([1, 2], times)))[0]
        for times in (5, 500)
    )
    assert few.value == many.value == 0.5
    assert few.low <= 0.5 <= few.high and many.high - many.low < few.high - few.low


def test_texts_are_captions_or_a_field_of_the_metadata(tmp_path: Path) -> None:
    rows = Rows(write_output(tmp_path, {0: vectors(3), 4: vectors(2)}))
    texts, text_of_N = texts_of(rows, "caption", 100)
    assert len(texts) == 5 and sorted(text_of_N.tolist()) == [0, 1, 2, 3, 4]
    drawn, text_of_N = texts_of(rows, "caption", 2)
    assert len(drawn) == 2 and (text_of_N == NO_TEXT).sum() == 3
    with pytest.raises(DataError, match="--by FIELD"):
        texts_of(rows, "label", 100)
