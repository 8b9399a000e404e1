"""The page of a comparison: figures, charts, and the pictures that moved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from lora_clip.compare.best import CLEAR, COLUMNS, DECIDING, Best, best, sentence
from lora_clip.compare.measures import Comparison, Output, cosines, kept, quantiles
from lora_clip.diagnose.summary import describe_model
from lora_clip.evaluate.figures import IMAGE_TO_TEXT, MEAN_PRECISION, NAMES, RANKS, TEXT_TO_IMAGE, Figure
from lora_clip.evaluate.texts import Asked
from lora_clip.report import charts
from lora_clip.report.charts import Chart, Kind, Length
from lora_clip.report.pages import Thumbnail, render
from lora_clip.search.exact import NO_ROW
from lora_clip.search.page import thumbnail

SHOWN, SHOWN_NEIGHBOURS = 10, 6
PIXELS = 112
COLOURS = (1, 0, 2, 3, 4, 5, 6, 7)
"""Of the outputs, in their order."""
NAME_LETTERS = 48


@dataclass(frozen=True)
class Side:
    """One of the outputs: what it is called, its colour, and its model."""

    name: str
    colour: int
    model: str


@dataclass(frozen=True)
class Cell:
    """A figure with its interval; `mark` is CLEAR or CLOSE for the best one, empty for another."""

    value: str
    interval: str
    mark: str


@dataclass(frozen=True)
class Line:
    """The figures of an output in one direction; none where they are not known."""

    side: Side
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Direction:
    """What is asked for what, and a line an output."""

    name: str
    lines: Sequence[Line]


@dataclass(frozen=True)
class TextSection:
    """What texts find in all outputs.

    `told` says which is best, and is empty where that cannot be said; `troubles` why figures are not known.
    """

    texts: int
    told: str
    names: Sequence[str]
    directions: Sequence[Direction]
    troubles: Sequence[str]
    chart: Chart | None


@dataclass(frozen=True)
class Apart:
    """How far two outputs are apart: the cosines of an image's embeddings, neighbours that are the same."""

    first: Side
    second: Side
    cosine: str
    between: str
    same: float


@dataclass(frozen=True)
class Moved:
    """Texts that one output puts first and the other does not find: how many, and some of their pictures."""

    count: int
    thumbnails: Sequence[Thumbnail]


@dataclass(frozen=True)
class RecallSection:
    """What texts find in two outputs; `deepest` is the largest k."""

    chart: Chart
    found: Moved
    lost: Moved
    deepest: int = max(RANKS)


@dataclass(frozen=True)
class CosineSection:
    """How far the images moved: the median, and between what nine of ten lie."""

    low: float
    median: float
    high: float
    chart: Chart


@dataclass(frozen=True)
class Case:
    """An image with its neighbours in both outputs."""

    image: Thumbnail
    first: Sequence[Thumbnail]
    second: Sequence[Thumbnail]


@dataclass(frozen=True)
class NeighbourSection:
    """Whose neighbours changed most: of `k` as many as `same` are the same, on average over `images`."""

    k: int
    same: float
    images: int
    chart: Chart
    cases: Sequence[Case]


@dataclass(frozen=True)
class PairSection:
    """All that is known of two outputs; `recall` is None where texts were not asked for in both."""

    first: Side
    second: Side
    recall: RecallSection | None
    cosines: CosineSection | None
    neighbours: NeighbourSection


@dataclass(frozen=True)
class ComparisonPage:
    """What compare.html lays out; `texts` is None where `no_texts` says why."""

    title: str
    outputs: Sequence[Side]
    images: int
    texts: TextSection | None
    no_texts: str
    k: int
    apart: Sequence[Apart]
    details: Sequence[PairSection]


def page(comparison: Comparison, pairs: Sequence[tuple[int, int]]) -> str:
    """The comparison as HTML, with details of these pairs of outputs, by their places."""
    outputs = comparison.outputs
    sides = [_side(place, output) for place, output in enumerate(outputs)]
    shown = ComparisonPage(
        title=f"{', '.join(side.name for side in sides[:-1])} and {sides[-1].name}",
        outputs=sides,
        images=comparison.images,
        texts=_texts(comparison.asked, outputs, sides) if comparison.asked else None,
        no_texts=comparison.trouble,
        k=outputs[0].near_SK.shape[1],
        apart=list(_apart(outputs, sides)) if len(outputs) > 2 else [],
        details=[_pair(comparison, sides, pair) for pair in pairs],
    )
    return render("compare.html", shown)


def _side(place: int, output: Output) -> Side:
    return Side(output.name, COLOURS[place % len(COLOURS)], describe_model(output.collection.manifest))


# --- All outputs -----------------------------------------------------------------------------------------------------


def _texts(asked: Asked, outputs: Sequence[Output], sides: Sequence[Side]) -> TextSection:
    marks = [best(outputs, column) for column in range(len(COLUMNS))]
    return TextSection(
        texts=len(asked.texts),
        told=sentence(outputs),
        names=NAMES,
        directions=[_direction(name, outputs, sides, marks) for name in (TEXT_TO_IMAGE, IMAGE_TO_TEXT)],
        troubles=[output.trouble for output in outputs if output.trouble],
        chart=_lengths(outputs, marks[DECIDING]) if len(outputs) > 2 else None,
    )


def _direction(name: str, outputs: Sequence[Output], sides: Sequence[Side], marks: Sequence[Best]) -> Direction:
    columns = [column for column, (direction, _) in enumerate(COLUMNS) if direction == name]
    lines = [
        Line(side, [_cell(output.figures[column], marks[column], place) for column in columns if output.figures])
        for place, (output, side) in enumerate(zip(outputs, sides, strict=True))
    ]
    return Direction(name, lines)


def _cell(figure: Figure, mark: Best, place: int) -> Cell:
    return Cell(figure.written(figure.value), _interval(figure), mark.mark(place))


def _interval(figure: Figure) -> str:
    return f"{figure.written(figure.low)} to {figure.written(figure.high)}"


def _lengths(outputs: Sequence[Output], marked: Best) -> Chart | None:
    """The deciding figure as bars, the best one in full colour."""
    lengths = [
        Length(
            charts.shortened(output.name, NAME_LETTERS),
            output.figures[DECIDING].value,
            f"{output.figures[DECIDING].value:.3f}{' best' if marked.mark(place) == CLEAR else ''}",
            place not in marked.places,
        )
        for place, output in enumerate(outputs)
        if output.figures
    ]
    described = "; ".join(f"{length.name}: {length.told}" for length in lengths)
    return charts.lying_bars(f"{MEAN_PRECISION} of {TEXT_TO_IMAGE}", described, lengths) if lengths else None


def _apart(outputs: Sequence[Output], sides: Sequence[Side]) -> Iterator[Apart]:
    for one, other in combinations(range(len(outputs)), 2):
        found_N, same = cosines(outputs[one], outputs[other]), float(kept(outputs[one], outputs[other]).mean())
        if found_N is None:
            yield Apart(sides[one], sides[other], "", "", same)
            continue
        low, median, high = quantiles(found_N)
        yield Apart(sides[one], sides[other], f"{median:.3f}", f"{low:.3f} to {high:.3f}", same)


# --- Two of them -----------------------------------------------------------------------------------------------------


def _pair(comparison: Comparison, sides: Sequence[Side], pair: tuple[int, int]) -> PairSection:
    first, second = (comparison.outputs[place] for place in pair)
    found_N = cosines(first, second)
    return PairSection(
        first=sides[pair[0]],
        second=sides[pair[1]],
        recall=_recall(comparison.asked, (first, second), [sides[place] for place in pair]),
        cosines=None if found_N is None else _cosines(found_N),
        neighbours=_neighbours(first, second, comparison.sampled_S),
    )


def _recall(asked: Asked | None, outputs: tuple[Output, Output], sides: Sequence[Side]) -> RecallSection | None:
    first, second = outputs
    if asked is None or first.ranks is None or second.ranks is None:
        return None
    values = zip(RANKS, first.figures, second.figures, strict=False)  # the first figures are recall of text to image
    shares = [(f"recall@{k}", one.value, other.value) for k, one, other in values]
    drawn = charts.shares("recall of texts", shares, [Kind(side.name, side.colour) for side in sides])
    deepest = max(RANKS)
    found_Q = (first.ranks.first_Q > deepest) & (second.ranks.first_Q == 1)
    lost_Q = (second.ranks.first_Q > deepest) & (first.ranks.first_Q == 1)
    return RecallSection(drawn, _moved(first, asked, found_Q), _moved(first, asked, lost_Q))


def _moved(output: Output, asked: Asked, moved_Q: np.ndarray) -> Moved:
    """Texts by a mask, with a picture of each of the first ones."""
    texts = np.flatnonzero(moved_Q)
    places = [int(np.argmax(asked.text_of_N == text)) for text in texts[: 2 * SHOWN_NEIGHBOURS]]
    return Moved(len(texts), _thumbnails(output, np.array(places, np.int64)))


def _cosines(cosines_N: np.ndarray) -> CosineSection:
    drawn = charts.histogram("cosine between the two embeddings of an image", cosines_N)
    return CosineSection(*quantiles(cosines_N), drawn)


def _neighbours(first: Output, second: Output, sampled_S: np.ndarray) -> NeighbourSection:
    k, same_S = first.near_SK.shape[1], kept(first, second)
    counts = np.bincount(same_S, minlength=k + 1)
    shares = [(str(same), count / len(same_S)) for same, count in enumerate(counts.tolist())]
    drawn = charts.shares(f"share of images, by how many of {k} neighbours are the same", shares)
    changed_most = np.argsort(same_S, kind="stable")[:SHOWN].tolist()
    cases = [_case(first, second, sampled_S, at) for at in changed_most]
    return NeighbourSection(k, float(same_S.mean()), len(same_S), drawn, cases)


def _case(first: Output, second: Output, sampled_S: np.ndarray, at: int) -> Case:
    (image,) = _thumbnails(first, sampled_S[[at]])
    one, other = (_thumbnails(first, output.near_SK[at, :SHOWN_NEIGHBOURS]) for output in (first, second))
    return Case(image, one, other)


def _thumbnails(output: Output, places_K: np.ndarray) -> list[Thumbnail]:
    """Pictures of images by their places; one that not all outputs hold is left out."""
    ids_K = output.ids_N[places_K[places_K != NO_ROW]]
    return [thumbnail(hit, PIXELS) for hit in output.collection.hits(np.ones(len(ids_K)), ids_K)]
