"""The index: exact where it says so, near to it where not, and never of another output."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.embeddings import vectors, write_output
from helpers.jobs import new_folder
from lora_clip.errors import ConfigError, OutputError
from lora_clip.output import rows as rows_module
from lora_clip.output.rows import Rows, row_ids, split_ids
from lora_clip.search.exact import NO_ROW, nearest
from lora_clip.search.index import build_index, factory_for, open_index, read_record
from lora_clip.search.update import update

SHARDS = {0: vectors(300, seed=0), 7: vectors(1, seed=1), 40: vectors(200, seed=2)}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return write_output(tmp_path / "output", SHARDS)


def everything(shards: dict[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    ids_N = np.concatenate([row_ids(shard, np.arange(len(part))) for shard, part in shards.items()])
    return ids_N, np.concatenate(list(shards.values())).astype(np.float32)


def test_the_kind_follows_the_size() -> None:
    assert factory_for(100, 512) == "Flat"
    assert factory_for(50_000, 512).startswith("HNSW")
    assert factory_for(3_000_000, 512) == "OPQ64,IVF8192,PQ64x8"
    assert factory_for(3_000_000, 13) == "IVF8192,SQ8"
    assert factory_for(3_000_000, 768) == factory_for(3_500_000, 768)


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    k=st.integers(1, 50),
    queries=st.integers(1, 3),
    at_once=st.integers(1, 50),
)
def test_exact_search_is_a_product_and_a_sort(sizes: list[int], k: int, queries: int, at_once: int) -> None:
    shards = {3 * number: vectors(size, seed=number) for number, size in enumerate(sizes)}
    rows = Rows(write_output(new_folder(), shards))
    queries_QD = vectors(queries, seed=77).astype(np.float32)
    ids_N, embeddings_ND = everything(shards)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "ROWS_AT_ONCE", at_once)
        scores_QK, ids_QK = nearest(rows, queries_QD, k)
    expected_QN = queries_QD @ embeddings_ND.T
    order_QK = np.argsort(-expected_QN, axis=1, kind="stable")[:, :k]
    np.testing.assert_allclose(scores_QK, np.take_along_axis(expected_QN, order_QK, 1), atol=1e-6)
    assert scores_QK.shape == (queries, min(k, len(ids_N)))
    np.testing.assert_array_equal(rows.embeddings(ids_QK[0]), embeddings_ND[np.searchsorted(ids_N, ids_QK[0])])


def test_rows_are_found_by_id_and_by_name(output: Path) -> None:
    rows = Rows(output)
    ids_N = row_ids(np.array([40, 0, 7]), np.array([199, 5, 0]))
    assert [row["key"] for row in rows.metadata(ids_N)] == ["040-000199", "000-000005", "007-000000"]
    assert (
        rows.find("https://example.org/040-000199") == ids_N[0] and rows.find("/data/0.tar/000-000005.jpg") == ids_N[1]
    )
    assert rows.find("nobody") is None
    assert len(rows) == 501 and rows.width == 16 and len(np.unique(rows.sample(400))) == 400
    assert [part.tolist() for part in split_ids(ids_N)] == [[40, 0, 7], [199, 5, 0]]


@pytest.mark.parametrize(
    ("factory", "least"),
    [
        (None, 1.0),
        ("HNSW32_SQ8", 0.9),
        ("IVF8,Flat", 0.9),
        ("IVF4,SQ8", 0.9),
        pytest.param("OPQ4,IVF4,PQ4x4", 0.5, marks=pytest.mark.slow),
    ],
)
def test_an_index_finds_what_exact_search_finds(tmp_path: Path, factory: str | None, least: float) -> None:
    shards = {0: vectors(1500, seed=1, clusters=20), 1: vectors(1500, seed=2, clusters=20)}
    root = write_output(tmp_path / "o", shards)
    made, added = build_index(root, factory)
    assert added == 3000 and made.recall_at_10 >= least
    rows = Rows(root)
    index = open_index(root, rows)
    assert index is not None and index.record == made
    queries_QD = rows.embeddings(rows.sample(5))
    scores_QK, ids_QK = index.search(queries_QD, 7)
    np.testing.assert_allclose(
        scores_QK, np.einsum("qd,qkd->qk", queries_QD, rows.embeddings(ids_QK.ravel()).reshape(5, 7, -1)), atol=1e-6
    )
    assert (np.diff(scores_QK) <= 0).all()
    np.testing.assert_allclose(scores_QK[:, 0], nearest(rows, queries_QD, 1)[0][:, 0], atol=1e-6)


def test_only_what_is_new_is_added(output: Path) -> None:
    build_index(output)
    assert build_index(output)[1] == 0
    write_output(output, {**SHARDS, 41: vectors(30, seed=5)})
    assert open_index(output, Rows(output)) is None, "an index that lacks rows is not used"
    made, added = build_index(output)
    assert (made.rows, added) == (531, 30)
    longer = np.concatenate([SHARDS[40], vectors(9, seed=6)])
    write_output(output, {**SHARDS, 40: longer, 41: vectors(30, seed=5)})
    assert build_index(output)[1] == 9, "a shard of which more was embedded keeps what was there"
    index = open_index(output, Rows(output))
    assert index is not None and index.search(longer[-1:].astype(np.float32), 1)[1] == row_ids(40, np.array([208]))
    assert len(list((output / "index").glob("*.faiss"))) == 1


def test_changed_rows_another_model_or_kind_mean_a_new_index(output: Path) -> None:
    build_index(output)
    write_output(output, {**SHARDS, 0: vectors(300, seed=9)})
    assert open_index(output, Rows(output)) is None and build_index(output)[1] == 501
    write_output(output, SHARDS, fingerprint="another")
    build_index(output)
    assert build_index(output, "HNSW32_SQ8")[1] == 501 and build_index(output, "HNSW32_SQ8")[1] == 0


def test_an_index_of_another_fingerprint_is_not_used(output: Path) -> None:
    build_index(output)
    write_output(output, {}, fingerprint="another")
    assert read_record(output) is not None and open_index(output, Rows(output)) is None


def test_an_interrupted_build_leaves_the_index_that_was_there(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, _ = build_index(output)
    write_output(output, {**SHARDS, 41: vectors(30, seed=5)})
    monkeypatch.setattr("lora_clip.search.index.write_text", lambda *_: sys.exit(9))
    with pytest.raises(SystemExit):
        build_index(output)
    monkeypatch.undo()
    assert read_record(output) == before
    assert build_index(output)[1] == 30 and len(list((output / "index").iterdir())) == 2


def test_mistakes_are_told(output: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'NOTHING'"):
        build_index(output, "NOTHING")
    with pytest.raises(ConfigError, match="501 rows"):
        build_index(output, "IVF9999,Flat")
    with pytest.raises(OutputError, match=r"below it: 1 output \(output\)"):
        update(tmp_path)
    build_index(output)
    (output / "index" / json.loads((output / "index" / "index.json").read_text())["file"]).write_bytes(b"broken")
    with pytest.raises(OutputError, match="cannot be read"):
        open_index(output, Rows(output))


def test_a_single_row_can_be_indexed(tmp_path: Path) -> None:
    root = write_output(tmp_path / "o", {0: vectors(1)})
    assert build_index(root)[0].recall_at_10 == 1.0
    index = open_index(root, Rows(root))
    assert index is not None
    assert index.search(vectors(1).astype(np.float32), 5)[1].tolist() in ([[0]], [[0, *[NO_ROW] * 4]])
