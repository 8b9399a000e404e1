"""Which output is best, and what outputs are called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from lora_clip.compare.best import CLEAR, CLOSE, COLUMNS, DECIDING, best, sentence
from lora_clip.compare.measures import Output
from lora_clip.compare.names import find_pair, name_roots
from lora_clip.errors import ConfigError
from lora_clip.evaluate.figures import MEDIAN_RANK, TEXT_TO_IMAGE, Figure, figures
from lora_clip.evaluate.ranks import Ranks


def outputs(*values: tuple[float, float, float] | None, column: int = DECIDING) -> Sequence[Output]:
    """Outputs called a, b, … of which one figure is value, low and high; None: not known."""
    direction, name = COLUMNS[column]
    made: list[Any] = []
    for letter, value in zip("abcdef", values, strict=False):
        line = [Figure(direction, name, *value, 10)] * len(COLUMNS) if value else []
        made.append(SimpleNamespace(name=letter, figures=line))
    return cast(Sequence[Output], made)


def test_columns_are_the_figures_in_their_order() -> None:
    found = figures(Ranks(np.ones(3), np.ones(3), np.ones(3)))
    assert [(figure.direction, figure.name) for figure in found] == COLUMNS


@pytest.mark.parametrize(
    ("known", "marks", "told"),
    [
        (((0.5, 0.4, 0.6), (0.9, 0.8, 1.0)), ["", CLEAR], "b by mAP of text to image: 0.900 (0.800 to 1.000); next a"),
        (((0.5, 0.4, 0.6), (0.55, 0.45, 0.65), (0.1, 0, 0.2)), ["", CLOSE, ""], "may be chance"),
        (((0.5, 0.4, 0.6), None, (0.1, 0, 0.2)), [CLEAR, "", ""], "next c"),
        (((0.5, 0.4, 0.6), (0.5, 0.4, 0.6), (0.1, 0, 0.2)), [CLOSE, CLOSE, ""], "a and b by mAP"),
        (((0.5, 0.4, 0.6), (0.5, 0.4, 0.6)), ["", ""], "all alike"),
        (((0.5, 0.4, 0.6), None), ["", ""], ""),
        ((None, None), ["", ""], ""),
    ],
)
def test_the_best_is_marked_and_told(known: tuple[Any, ...], marks: list[str], told: str) -> None:
    found = outputs(*known)
    assert [best(found, DECIDING).mark(place) for place in range(len(found))] == marks
    assert told in sentence(found) and bool(told) == bool(sentence(found))


def test_a_lower_median_rank_is_better() -> None:
    column = COLUMNS.index((TEXT_TO_IMAGE, MEDIAN_RANK))
    assert list(best(outputs((9, 8, 10), (2, 1, 3), (5, 4, 6), column=column), column).places) == [1]


def test_outputs_are_called_by_what_tells_them_apart() -> None:
    assert name_roots([Path("/r/one"), Path("/r/two")]) == ["one", "two"]
    assert name_roots([Path("/r/a/emb"), Path("/r/b/emb"), Path("/r/three")]) == ["a/emb", "b/emb", "three"]
    assert name_roots([Path("/r/a/x/emb"), Path("/r/b/x/emb")]) == ["a/x/emb", "b/x/emb"]
    assert name_roots([Path("/emb"), Path("/r/emb"), Path("/emb")]) == ["/emb", "r/emb", "/emb"]


def test_a_pair_is_found_by_path_or_name() -> None:
    roots = [Path("/r/a/emb"), Path("/r/b/emb"), Path("/r/c")]
    assert find_pair([Path("b/emb"), Path("/r/c/")], name_roots(roots), roots) == (1, 2)
    with pytest.raises(ConfigError, match="none of the outputs"):
        find_pair([Path("emb"), Path("c")], name_roots(roots), roots)
