"""A map of the embeddings: their first two principal components, with pictures where there is room."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lora_clip.inspection.pictures import Pictures
from lora_clip.output.rows import Rows
from lora_clip.report.charts import Chart, Picture, scatter
from lora_clip.report.pages import data_uri

ROWS_LOOKED_AT = 4096
WIDTH, HEIGHT, EDGE = 960, 640, 32
CELL, PIXELS = 72, 56
MOST_PICTURES = 90


@dataclass(frozen=True)
class EmbeddingMap:
    """The map, of how many images it is, and the share of the variance that it shows."""

    chart: Chart
    images: int
    variance: float


def principal_components(embeddings_ND: np.ndarray) -> tuple[np.ndarray, float]:
    """Coordinates (N, 2) on the two axes along which embeddings vary most, and the share of the variance they hold.

    Each axis points to where its largest weight is positive, so that a map of the same embeddings is the same map.
    """
    centred_ND = embeddings_ND - embeddings_ND.mean(axis=0)
    variances_D, axes_DD = np.linalg.eigh(centred_ND.T.astype(np.float64) @ centred_ND)
    axes_D2 = axes_DD[:, ::-1][:, :2]
    axes_D2 = axes_D2 * np.sign(np.take_along_axis(axes_D2, np.abs(axes_D2).argmax(axis=0)[None], 0))
    total = float(variances_D.sum())
    share = float(variances_D[::-1][:2].sum()) / total if total > 0 else 1.0
    points_N2 = centred_ND @ axes_D2
    return np.pad(points_N2, ((0, 0), (0, 2 - points_N2.shape[1]))), share


def embedding_map(rows: Rows, pictures: Pictures) -> EmbeddingMap:
    """The map of a sample of all rows."""
    ids_N = rows.sample(ROWS_LOOKED_AT)
    points_N2, variance = principal_components(rows.embeddings(ids_N))
    placed_N2 = place(points_N2)
    shown_K = spread(placed_N2)
    images = _pictures(rows.metadata(ids_N[shown_K]), placed_N2[shown_K], pictures)
    described = f"{len(ids_N):,} images, near to one another where their embeddings are alike"
    drawn = scatter("Map of the embeddings", described, placed_N2, images, (WIDTH, HEIGHT))
    return EmbeddingMap(drawn, len(ids_N), variance)


def place(points_N2: np.ndarray) -> np.ndarray:
    """Points (N, 2) moved and scaled, each axis by itself, into the drawing."""
    low_2, high_2 = points_N2.min(axis=0), points_N2.max(axis=0)
    room_2 = np.array([WIDTH - 2 * EDGE, HEIGHT - 2 * EDGE])
    return EDGE + (points_N2 - low_2) / np.where(high_2 > low_2, high_2 - low_2, 1.0) * room_2


def spread(placed_N2: np.ndarray) -> np.ndarray:
    """Numbers of the points that are shown as pictures: in each cell of a grid the one nearest to its middle."""
    cells_N2 = (placed_N2 // CELL).astype(int)
    away_N = np.abs(placed_N2 - (cells_N2 + 0.5) * CELL).sum(axis=1)
    nearest: dict[tuple[int, int], int] = {}
    for at in np.argsort(-away_N, kind="stable").tolist():
        nearest[int(cells_N2[at, 0]), int(cells_N2[at, 1])] = at
    kept = sorted(nearest.values())
    return np.array(kept)[np.linspace(0, len(kept) - 1, min(len(kept), MOST_PICTURES), dtype=int)]


def _pictures(lines: list[dict], placed_K2: np.ndarray, pictures: Pictures) -> Iterator[Picture]:
    """The pictures of some rows where their points are placed; one that cannot be read is left out."""
    for row, (x, y) in zip(lines, placed_K2.tolist(), strict=True):
        jpeg = pictures.thumbnail(row["shard"], row["position"], PIXELS, row["key"])
        if jpeg is not None:
            yield Picture(x, y, PIXELS, data_uri(jpeg), row["caption"] or row["key"])
