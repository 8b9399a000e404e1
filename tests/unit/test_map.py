"""The map of the embeddings: principal components, placed in a drawing, some of them as pictures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.embeddings import vectors
from lora_clip.report.map import HEIGHT, MOST_PICTURES, WIDTH, place, principal_components, spread


def test_the_map_is_the_principal_components() -> None:
    embeddings_ND = vectors(200, 12).astype(np.float32)
    points_N2, share = principal_components(embeddings_ND)
    centred_ND = embeddings_ND - embeddings_ND.mean(axis=0)
    left, values, _ = np.linalg.svd(centred_ND, full_matrices=False)
    np.testing.assert_allclose(np.abs(points_N2), np.abs(left[:, :2] * values[:2]), atol=1e-4)
    assert share == pytest.approx(float((values[:2] ** 2).sum() / (values**2).sum()), abs=1e-5)
    np.testing.assert_array_equal(principal_components(embeddings_ND)[0], points_N2)


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 300), width=st.integers(1, 5), seed=st.integers(0, 9), same=st.booleans())
def test_every_map_lies_within_its_drawing(count: int, width: int, seed: int, same: bool) -> None:
    embeddings_ND = vectors(1 if same else count, width, seed).astype(np.float32).repeat(count if same else 1, axis=0)
    points_N2, share = principal_components(embeddings_ND)
    placed_N2 = place(points_N2)
    assert placed_N2.shape == (len(embeddings_ND), 2) and np.isfinite(placed_N2).all() and 0 <= share <= 1 + 1e-6
    assert (placed_N2 >= 0).all() and (placed_N2 <= (WIDTH, HEIGHT)).all()
    shown = spread(placed_N2)
    assert 1 <= len(shown) <= MOST_PICTURES and len(set(shown.tolist())) == len(shown)
