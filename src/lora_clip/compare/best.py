"""Which output is best, and whether that may be chance: by each figure, and in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_clip.compare.measures import Output
from lora_clip.evaluate.figures import IMAGE_TO_TEXT, MEAN_PRECISION, NAMES, TEXT_TO_IMAGE, Figure

COLUMNS = [(direction, name) for direction in (TEXT_TO_IMAGE, IMAGE_TO_TEXT) for name in NAMES]
"""The figures of an output, in their order."""
DECIDING = COLUMNS.index((TEXT_TO_IMAGE, MEAN_PRECISION))
"""The figure that says which output is best: it alone takes all ranks of all of a text's images into account."""

CLEAR, CLOSE = "clear", "close"


@dataclass(frozen=True)
class Best:
    """The outputs with the best value of a figure, by their places; `clear` where the next interval lies apart."""

    places: Sequence[int]
    clear: bool

    def mark(self, place: int) -> str:
        """CLEAR or CLOSE for an output that is best, empty for another."""
        return (CLEAR if self.clear else CLOSE) if place in self.places else ""


def best(outputs: Sequence[Output], column: int) -> Best:
    """Which outputs are best by a figure; none where all are alike or only one is known."""
    ranked = _ranked(outputs, column)
    places = [place for place, figure in ranked if figure.goodness == ranked[0][1].goodness]
    if len(places) == len(ranked):
        return Best([], False)
    return Best(places, not ranked[0][1].overlaps(ranked[1][1]))


def _ranked(outputs: Sequence[Output], column: int) -> list[tuple[int, Figure]]:
    """The outputs whose figures are known, by their places, the best first."""
    known = [(place, output.figures[column]) for place, output in enumerate(outputs) if output.figures]
    return sorted(known, key=lambda found: -found[1].goodness)


def sentence(outputs: Sequence[Output]) -> str:
    """Which output is best, by how much, and whether that may be chance; empty where fewer than two are known."""
    ranked = _ranked(outputs, DECIDING)
    if len(ranked) < 2:
        return ""
    first, places = ranked[0][1], best(outputs, DECIDING).places
    what = f"by {MEAN_PRECISION} of {TEXT_TO_IMAGE}"
    if not places:
        return f"all alike {what}: {_told(first)}"
    next_place, second = ranked[len(places)]
    names = " and ".join(outputs[place].name for place in places)
    apart = "the intervals overlap, so the difference may be chance" if first.overlaps(second) else "clearly apart"
    return f"{names} {what}: {_told(first)}; next {outputs[next_place].name}: {_told(second)}: {apart}"


def _told(figure: Figure) -> str:
    return f"{figure.written(figure.value)} ({figure.written(figure.low)} to {figure.written(figure.high)})"
