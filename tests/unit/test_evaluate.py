"""Retrieval figures against an independent computation, query by query, on plain lists."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.embeddings import vectors, write_output
from lora_clip.errors import ConfigError, DataError
from lora_clip.evaluate.figures import IMAGE_TO_TEXT, TEXT_TO_IMAGE, figures
from lora_clip.evaluate.ranks import NO_TEXT, Ranks, rank
from lora_clip.evaluate.texts import Asked, Wanted, texts_of
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


def test_a_text_with_several_images_has_the_precision_of_the_definition() -> None:
    images_ND = np.eye(4, dtype=np.float32)
    texts_QD = np.array([[0.9, 0.8, 0.7, 0.6], [0.1, 0.2, 0.3, 0.4]], np.float32)
    found = figures(rank(texts_QD, np.array([0, 1, 0, NO_TEXT]), lambda: [images_ND]))
    values = {(figure.direction, figure.name): figure.value for figure in found}
    first = (1 / 1 + 2 / 3) / 2  # its images come first and third
    assert values[TEXT_TO_IMAGE, "mAP"] == pytest.approx((first + 1 / 3) / 2)
    assert values[IMAGE_TO_TEXT, "mAP"] == pytest.approx((1 + 1 / 2 + 1) / 3)  # the second image's text comes second
    assert values[TEXT_TO_IMAGE, "median rank"] == 2


def test_an_interval_is_that_of_resampling_query_by_query() -> None:
    ranks_Q = np.random.default_rng(1).geometric(0.2, 301)
    rng = np.random.default_rng(2)
    drawn = [ranks_Q[rng.integers(0, len(ranks_Q), len(ranks_Q))] for _ in range(4000)]
    found = {figure.name: figure for figure in figures(Ranks(ranks_Q, 1 / ranks_Q, ranks_Q))[:5]}
    of_ranks = {
        "recall@5": [(ranks_Q <= 5).mean() for ranks_Q in drawn],
        "median rank": [np.median(ranks_Q) for ranks_Q in drawn],
        "mAP": [(1 / ranks_Q).mean() for ranks_Q in drawn],
    }
    for name, values in of_ranks.items():
        low, high = np.quantile(values, (0.025, 0.975))
        assert found[name].low == pytest.approx(low, abs=0.02) and found[name].high == pytest.approx(high, abs=0.02)
    assert found["median rank"].value == np.median(ranks_Q)
    even = figures(Ranks(np.array([1, 2, 5, 9]), np.ones(4), np.array([1, 2])))
    assert even[3].value == 3.5


def output_with_labels(root: Path) -> Rows:
    """Six rows in two shards, of three labels; the last row has none."""
    rows = Rows(write_output(root, {0: vectors(3), 4: vectors(3, seed=1)}))
    told = ["cat", "dog", 7, "cat", " dog "]
    labels = [*(json.dumps({"label": label}) for label in told), "[broken"]
    for block, mine in zip(rows.blocks.values(), (labels[:3], labels[3:]), strict=True):
        table = pq.read_table(block.metadata)
        at = table.schema.get_field_index("metadata")
        pq.write_table(table.set_column(at, "metadata", pa.array(mine, pa.string())), block.metadata)
    return rows


def test_texts_are_captions_or_a_field_of_the_metadata(tmp_path: Path) -> None:
    rows = output_with_labels(tmp_path)
    captions = texts_of(rows, rows.ids(), Wanted())
    assert len(captions.texts) == 6 and sorted(captions.text_of_N.tolist()) == [0, 1, 2, 3, 4, 5]
    labels = texts_of(rows, rows.ids(), Wanted("label", "a {}"))
    assert labels == Asked(["a 7", "a cat", "a dog"], labels.text_of_N)
    assert labels.text_of_N.tolist() == [1, 2, 0, 1, 2, NO_TEXT]
    drawn = texts_of(rows, rows.ids(), Wanted(most=2))
    assert len(drawn.texts) == 2 and (drawn.text_of_N == NO_TEXT).sum() == 4
    with pytest.raises(DataError, match="--by FIELD"):
        texts_of(rows, rows.ids(), Wanted("colour"))
    with pytest.raises(ConfigError, match="a photo of a"):
        Wanted(template="a photo")


def test_texts_of_some_rows_are_theirs_in_their_order(tmp_path: Path) -> None:
    rows = output_with_labels(tmp_path)
    some = texts_of(rows, rows.ids()[[4, 0]], Wanted("label"))
    assert some.texts == ["cat", "dog"] and some.text_of_N.tolist() == [1, 0]
