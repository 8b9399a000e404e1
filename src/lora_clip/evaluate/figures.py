"""From ranks to the figures that papers print, each with an interval: recall@k, median rank, mean average precision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lora_clip.evaluate.ranks import Ranks

RANKS = (1, 5, 10)
"""The k of recall@k."""
MEDIAN_RANK, MEAN_PRECISION = "median rank", "mAP"
NAMES = (*(f"recall@{k}" for k in RANKS), MEDIAN_RANK, MEAN_PRECISION)
TEXT_TO_IMAGE, IMAGE_TO_TEXT = "text to image", "image to text"
RESAMPLED, CONFIDENCE = 1000, 0.95


@dataclass(frozen=True)
class Figure:
    """A figure with its 95 % interval, by resampling the queries (percentile bootstrap, Efron 1979)."""

    direction: str
    name: str
    value: float
    low: float
    high: float
    queries: int

    @property
    def goodness(self) -> float:
        """What is higher where the figure is better."""
        return -self.value if self.name == MEDIAN_RANK else self.value

    def overlaps(self, other: Figure) -> bool:
        """Whether the two intervals have a value in common."""
        return self.low <= other.high and other.low <= self.high

    def written(self, value: float) -> str:
        """A value of this figure as it is printed."""
        return f"{value:.1f}" if self.name == MEDIAN_RANK else f"{value:.3f}"

    def to_json(self) -> dict[str, Any]:
        """The figure as plain JSON values."""
        return asdict(self)


def figures(ranks: Ranks) -> list[Figure]:
    """The figures of both directions, each in the order of NAMES."""
    of_images = _figures(TEXT_TO_IMAGE, ranks.first_Q, ranks.precision_Q)
    return [*of_images, *_figures(IMAGE_TO_TEXT, ranks.text_N, 1 / ranks.text_N)]  # an image has one text


def _figures(direction: str, ranks_Q: np.ndarray, precision_Q: np.ndarray) -> Iterator[Figure]:
    for k in RANKS:
        yield _figure(direction, f"recall@{k}", (ranks_Q <= k).astype(float))
    yield _figure(direction, MEDIAN_RANK, ranks_Q.astype(float))
    yield _figure(direction, MEAN_PRECISION, precision_Q)


def _figure(direction: str, name: str, values_Q: np.ndarray, seed: int = 0) -> Figure:
    """A figure with its interval, drawn by how often each value occurs: as many queries as there are cost no more."""
    count = len(values_Q)
    values_V, counts_V = np.unique(values_Q, return_counts=True)
    drawn_RV = np.random.default_rng(seed).multinomial(count, counts_V / count, RESAMPLED)
    statistic = _medians if name == MEDIAN_RANK else _means
    low, high = np.quantile(statistic(values_V, drawn_RV), ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    (value,) = statistic(values_V, counts_V[None])
    return Figure(direction, name, float(value), float(low), float(high), count)


def _means(values_V: np.ndarray, counts_RV: np.ndarray) -> np.ndarray:
    return counts_RV @ values_V / counts_RV.sum(axis=1)


def _medians(values_V: np.ndarray, counts_RV: np.ndarray) -> np.ndarray:
    """The medians (R,) of ascending values that occur so often: the mean of the middle two, or the middle one."""
    ends_RV, count = counts_RV.cumsum(axis=1), int(counts_RV[0].sum())
    middle_2R = [values_V[(ends_RV <= at).sum(axis=1)] for at in ((count - 1) // 2, count // 2)]
    return np.mean(middle_2R, axis=0)
