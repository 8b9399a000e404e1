"""A few pictures of the output, each with its nearest neighbours: whether the embeddings make sense, at a glance."""

from __future__ import annotations

import numpy as np

from lora_clip.inspection.pictures import Pictures
from lora_clip.output.rows import Rows
from lora_clip.report.pages import Thumbnail

ROWS_LOOKED_AT = 4096
QUERIES, NEIGHBOURS = 6, 6
THUMBNAIL_PIXELS = 112


def gallery(rows: Rows, pictures: Pictures) -> list[list[Thumbnail]]:
    """Some pictures of a sample of all rows; each line is a query followed by its nearest neighbours in the sample."""
    ids_N = rows.sample(ROWS_LOOKED_AT)
    embeddings_ND = rows.embeddings(ids_N)
    queries = np.linspace(0, len(ids_N) - 1, min(QUERIES, len(ids_N)), dtype=int)
    return [_line(rows, pictures, ids_N, *_nearest(embeddings_ND, int(query))) for query in queries]


def _nearest(embeddings_ND: np.ndarray, query: int) -> tuple[np.ndarray, np.ndarray]:
    """The query and its nearest neighbours by their places in the sample, and the cosine of each."""
    cosines_N = embeddings_ND @ embeddings_ND[query]
    others = [at for at in np.argsort(-cosines_N, kind="stable")[: NEIGHBOURS + 1].tolist() if at != query]
    chosen_K = np.array([query, *others[:NEIGHBOURS]])
    return chosen_K, cosines_N[chosen_K]


def _line(
    rows: Rows, pictures: Pictures, ids_N: np.ndarray, chosen_K: np.ndarray, cosines_K: np.ndarray
) -> list[Thumbnail]:
    """The chosen rows with pictures from the input; one that cannot be read has none."""
    return [
        Thumbnail(
            row["caption"] or row["key"],
            pictures.thumbnail(row["shard"], row["position"], THUMBNAIL_PIXELS, row["key"]),
            score=cosine,
        )
        for row, cosine in zip(rows.metadata(ids_N[chosen_K]), cosines_K.tolist(), strict=True)
    ]
