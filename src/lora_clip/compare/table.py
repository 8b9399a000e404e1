"""A comparison for a terminal: one table, and what it says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lora_clip.compare.best import CLEAR, CLOSE, COLUMNS, Best, best, sentence
from lora_clip.compare.measures import Comparison, Output, cosines, kept, quantiles
from lora_clip.evaluate.figures import MEDIAN_RANK, NAMES
from lora_clip.terminal import align

SIGNS, UNKNOWN = {"": "", CLEAR: "*", CLOSE: "~"}, "-"
MARKS = f"{SIGNS[CLEAR]} best; {SIGNS[CLOSE]} best, but its 95 % interval overlaps that of the next"
SHORT = {MEDIAN_RANK: "median"}
NAME_LETTERS = 16


def lines(comparison: Comparison, pair: tuple[int, int] | None) -> Iterator[str]:
    """What is printed; `pair` are the places of two outputs of which more is said."""
    yield f"images:     {comparison.images:,} in all"
    yield from _pair(*(comparison.outputs[place] for place in pair)) if pair else ()
    yield ""
    yield from align(_rows(comparison))
    yield ""
    yield from filter(None, (comparison.trouble, *(output.trouble for output in comparison.outputs)))
    if told := sentence(comparison.outputs):
        yield from (f"best:       {told}", f"            {MARKS}")


def _pair(first: Output, second: Output) -> Iterator[str]:
    found_N, same_S = cosines(first, second), kept(first, second)
    if found_N is not None:
        low, median, high = quantiles(found_N)
        yield f"cosine:     median {median:.3f}, nine of ten from {low:.3f} to {high:.3f}"
    yield f"neighbours: {same_S.mean():.1f} of {first.near_SK.shape[1]} are the same"


def _rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """A row of cells an output, below the names of the columns and of what they belong to."""
    outputs = comparison.outputs
    columns = COLUMNS if any(output.figures for output in outputs) else []
    above = [direction if name == NAMES[0] else "" for direction, name in columns]
    names = [name if name == NAMES[0] else SHORT.get(name, name.removeprefix("recall")) for _, name in columns]
    header = [("", *above, f"to {shortened(outputs[0].name)}", ""), ("output", *names, "cosine", "neighbours")]
    marks = [best(outputs, column) for column in range(len(columns))]
    return header + [
        (output.name, *_figures(output, place, marks), *_apart(outputs[0], output, place))
        for place, output in enumerate(outputs)
    ]


def shortened(name: str) -> str:
    """A name that makes no column wide; its end tells checkpoints apart."""
    return name if len(name) <= NAME_LETTERS else f"...{name[3 - NAME_LETTERS :]}"


def _figures(output: Output, place: int, marks: Sequence[Best]) -> Iterator[str]:
    for column, mark in enumerate(marks):
        if not output.figures:
            yield UNKNOWN
            continue
        figure = output.figures[column]
        yield figure.written(figure.value) + SIGNS[mark.mark(place)]


def _apart(first: Output, output: Output, place: int) -> tuple[str, str]:
    """How far an output is from the first one: the median cosine, and the neighbours that are the same."""
    if place == 0:
        return UNKNOWN, UNKNOWN
    found_N, k = cosines(first, output), first.near_SK.shape[1]
    median = UNKNOWN if found_N is None else f"{quantiles(found_N)[1]:.3f}"
    return median, f"{kept(first, output).mean():.1f} of {k}"
