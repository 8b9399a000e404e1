"""The page of a comparison: figures, charts, and the pictures that moved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lora_clip.compare.measures import RANKS, Neighbours, Recall
from lora_clip.diagnose.summary import describe_model
from lora_clip.report import charts
from lora_clip.report.charts import Chart, Kind
from lora_clip.report.pages import Thumbnail, render
from lora_clip.search.collection import Collection
from lora_clip.search.page import thumbnail

SHOWN, SHOWN_NEIGHBOURS = 10, 6
PIXELS = 112
FIRST, SECOND = 1, 0
"""The colours of the two outputs."""


@dataclass(frozen=True)
class Side:
    """One of the two outputs: what it is called, and its model."""

    name: str
    model: str


@dataclass(frozen=True)
class Moved:
    """Captions that one output puts first and the other does not find: how many, and some of their pictures."""

    count: int
    thumbnails: Sequence[Thumbnail]


@dataclass(frozen=True)
class RecallSection:
    """What the captions find: `shares` has name, first and second output; `deepest` is the largest k."""

    captions: int
    chart: Chart
    shares: Sequence[tuple[str, float, float]]
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
class ComparisonPage:
    """What compare.html lays out; `recall` is None where `no_recall` says why."""

    title: str
    first: Side
    second: Side
    images: int
    recall: RecallSection | None
    no_recall: str
    cosines: CosineSection | None
    neighbours: NeighbourSection


def page(
    first: Collection,
    second: Collection,
    images: int,
    cosines_N: np.ndarray | None,
    near: Neighbours,
    told: Recall | str,
) -> str:
    """The comparison as HTML."""
    names = name_sides(first, second)
    shown = ComparisonPage(
        title=f"{names[0]} and {names[1]}",
        first=Side(names[0], describe_model(first.manifest)),
        second=Side(names[1], describe_model(second.manifest)),
        images=images,
        recall=None if isinstance(told, str) else _recall(first, names, told),
        no_recall=told if isinstance(told, str) else "",
        cosines=None if cosines_N is None else _cosines(cosines_N),
        neighbours=_neighbours(first, near),
    )
    return render("compare.html", shown)


def name_sides(first: Collection, second: Collection) -> tuple[str, str]:
    """What the two outputs are called: their folders' names, or their paths where the names are the same."""
    one, other = (collection.root.resolve() for collection in (first, second))
    return (one.name, other.name) if one.name != other.name else (str(one), str(other))


def _recall(first: Collection, names: tuple[str, str], told: Recall) -> RecallSection:
    shares = [(f"recall@{k}", told.at(told.first_S, k), told.at(told.second_S, k)) for k in RANKS]
    kinds = [Kind(names[0], FIRST), Kind(names[1], SECOND)]
    found = _moved(first, told, (told.first_S == 0) & (told.second_S == 1))
    lost = _moved(first, told, (told.second_S == 0) & (told.first_S == 1))
    return RecallSection(len(told.captions), charts.shares("recall of captions", shares, kinds), shares, found, lost)


def _moved(first: Collection, told: Recall, moved_S: np.ndarray) -> Moved:
    chosen = told.ids_S[moved_S]
    return Moved(len(chosen), _thumbnails(first, chosen[: 2 * SHOWN_NEIGHBOURS]))


def _cosines(cosines_N: np.ndarray) -> CosineSection:
    drawn = charts.histogram("cosine between the two embeddings of an image", cosines_N)
    return CosineSection(*quantiles(cosines_N), drawn)


def quantiles(cosines_N: np.ndarray) -> tuple[float, float, float]:
    """The median between the two ends of what nine of ten lie between."""
    low, median, high = np.quantile(cosines_N, (0.05, 0.5, 0.95)).tolist()
    return low, median, high


def _neighbours(first: Collection, near: Neighbours) -> NeighbourSection:
    k = near.first_SK.shape[1]
    counts = np.bincount(near.same_S, minlength=k + 1)
    shares = [(str(same), count / len(near.same_S)) for same, count in enumerate(counts.tolist())]
    drawn = charts.shares(f"share of images, by how many of {k} neighbours are the same", shares)
    changed_most = np.argsort(near.same_S, kind="stable")[:SHOWN]
    cases = [_case(first, near, at) for at in changed_most.tolist()]
    return NeighbourSection(k, float(near.same_S.mean()), len(near.same_S), drawn, cases)


def _case(first: Collection, near: Neighbours, at: int) -> Case:
    (image,) = _thumbnails(first, near.sampled.first_N[[at]])
    one, other = (_thumbnails(first, side_SK[at, :SHOWN_NEIGHBOURS]) for side_SK in (near.first_SK, near.second_SK))
    return Case(image, one, other)


def _thumbnails(collection: Collection, ids_K: np.ndarray) -> list[Thumbnail]:
    """Pictures of rows; one that is not in this output is left out."""
    known_K = ids_K[ids_K >= 0]
    return [thumbnail(hit, PIXELS) for hit in collection.hits(np.ones(len(known_K)), known_K)]


def figures(
    first: Collection,
    second: Collection,
    images: int,
    cosines_N: np.ndarray | None,
    near: Neighbours,
    told: Recall | str,
) -> Iterable[str]:
    """The figures of the page, for a terminal."""
    yield f"images:     {images:,} in both"
    if cosines_N is not None:
        low, median, high = quantiles(cosines_N)
        yield f"cosine:     median {median:.3f}, nine of ten from {low:.3f} to {high:.3f}"
    yield f"neighbours: {near.same_S.mean():.1f} of {near.first_SK.shape[1]} are the same"
    if isinstance(told, str):
        yield told
        return
    for name, ranks_S in zip(name_sides(first, second), (told.first_S, told.second_S), strict=True):
        shares = ", ".join(f"recall@{k} {told.at(ranks_S, k):.3f}" for k in RANKS)
        yield f"captions:   {shares} in {name}"
