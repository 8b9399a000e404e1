"""From ranks to the figures that papers print, each with an interval: recall@k, median rank, mean average precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lora_clip.evaluate.ranks import Ranks

RANKS = (1, 5, 10)
"""The k of recall@k."""
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

    def to_json(self) -> dict[str, Any]:
        """The figure as plain JSON values."""
        return asdict(self)


def figures(ranks: Ranks) -> list[Figure]:
    """The figures of both directions."""
    text_to_image = [*_of_ranks("text to image", ranks.first_Q)]
    text_to_image.append(_figure("text to image", "mAP", ranks.precision_Q, _mean))
    return [*text_to_image, *_of_ranks("image to text", ranks.text_N)]


def _of_ranks(direction: str, ranks_Q: np.ndarray) -> Iterator[Figure]:
    for k in RANKS:
        yield _figure(direction, f"recall@{k}", (ranks_Q <= k).astype(float), _mean)
    yield _figure(direction, "median rank", ranks_Q.astype(float), _median)


def _figure(
    direction: str, name: str, values_Q: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], seed: int = 0
) -> Figure:
    rng, count = np.random.default_rng(seed), len(values_Q)
    resampled = np.array([statistic(values_Q[rng.integers(0, count, count)]) for _ in range(RESAMPLED)])
    low, high = np.quantile(resampled, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return Figure(direction, name, float(statistic(values_Q)), float(low), float(high), count)


def _mean(values: np.ndarray) -> np.ndarray:
    return values.mean()


def _median(values: np.ndarray) -> np.ndarray:
    return np.median(values)
