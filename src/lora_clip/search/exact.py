"""The nearest rows by looking at every one: what an index is measured against, and what is used where there is none."""

from __future__ import annotations

import numpy as np

from lora_clip.output.rows import Rows

NO_ROW = -1
"""The id where there are fewer rows than were asked for."""


def nearest(rows: Rows, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores (Q, k) float32, highest first, and ids (Q, k): cosines, if the queries have unit norm.

    Reads the embeddings from disk once and holds a part of them at a time. Of equal scores the lower id comes first.
    """
    scores_QK = np.full((len(queries_QD), 0), -np.inf, np.float32)
    ids_QK = np.full((len(queries_QD), 0), NO_ROW, np.int64)
    for ids_N, embeddings_ND in rows.stream():
        fresh_QN = queries_QD.astype(np.float32) @ embeddings_ND.T
        scores_QK = np.concatenate([scores_QK, fresh_QN], axis=1)
        ids_QK = np.concatenate([ids_QK, np.broadcast_to(ids_N, fresh_QN.shape)], axis=1)
        scores_QK, ids_QK = best(scores_QK, ids_QK, k)
    return scores_QK, ids_QK


def best(scores_QN: np.ndarray, ids_QN: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k highest of each line, highest first; of equal scores the earlier one."""
    if scores_QN.shape[1] > 4 * k:
        kept_QK = np.sort(np.argpartition(-scores_QN, k, axis=1)[:, : k + 1], axis=1)
        scores_QN, ids_QN = np.take_along_axis(scores_QN, kept_QK, 1), np.take_along_axis(ids_QN, kept_QK, 1)
    order_QK = np.argsort(-scores_QN, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores_QN, order_QK, 1), np.take_along_axis(ids_QN, order_QK, 1)
