"""What changed between two outputs: measured on outputs of which it is known."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers.images import write_shards
from helpers.jobs import lora_clip, new_folder, nursery, uninterrupted
from lora_clip.compare.measures import Recall, cosines, neighbours, recall
from lora_clip.compare.pairs import pair
from lora_clip.errors import OutputError
from lora_clip.search import open_output


@pytest.fixture(scope="module")
def base() -> Path:
    return uninterrupted("model=demo_base")


@pytest.fixture(scope="module")
def adapted() -> Path:
    return uninterrupted("index=true")


def test_an_output_differs_from_itself_in_nothing(adapted: Path) -> None:
    first, second = open_output(adapted), open_output(adapted)
    pairs = pair(first, second)
    found = cosines(first, second, pairs)
    assert len(pairs) == 400 and found is not None and np.abs(found - 1).max() < 2e-3
    assert (neighbours(first, second, pairs).same_S == 10).all()
    told = recall(first, second, pairs)
    assert isinstance(told, Recall) and (told.first_S == told.second_S).all()


def test_the_adapter_is_what_made_the_difference(base: Path, adapted: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = lora_clip("compare", base, adapted, "--output", page)
    assert done.returncode == 0, done.stderr
    figures = [line for line in done.stdout.splitlines() if "recall@1 " in line]
    shares = [float(line.split("recall@1 ")[1].split(",")[0]) for line in figures]
    assert [Path(line.split()[-1]) for line in figures] == [base, adapted], "of one name, they are told apart"
    assert shares[0] < 0.1 and shares[1] > 0.9
    text = page.read_text()
    assert text.count("<svg") == 3 and "captions are found" in text and "default-src 'none'" in text
    assert text.count('class="case"') >= 10 and "no picture" not in text


def test_the_cosines_and_neighbours_are_those_of_the_embeddings(base: Path, adapted: Path) -> None:
    first, second = open_output(base), open_output(adapted)
    pairs = pair(first, second)
    one_ND, other_ND = first.rows.embeddings(pairs.first_N), second.rows.embeddings(pairs.second_N)
    found = cosines(first, second, pairs)
    assert found is not None
    np.testing.assert_allclose(found, (one_ND * other_ND).sum(1), atol=1e-5)
    near = neighbours(first, second, pairs)
    ten = [set(np.argsort(-(side @ side[5]), kind="stable")[:11].tolist()) - {5} for side in (one_ND, other_ND)]
    assert near.same_S[5] == len(ten[0] & ten[1])


def test_only_common_images_are_compared(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [6, 5])
    small, large, other = (new_folder() / "output" for _ in range(3))
    nursery().predict("data=shards", f"data.shards={shards[1]}", f"output_dir={small}").expect(0)
    nursery().predict("data=shards", f"data.shards={tmp_path}", f"output_dir={large}").expect(0)
    pairs = pair(open_output(small), open_output(large))
    assert pairs.first_N.tolist() == [0, 1, 2, 3, 4] and pairs.second_N.tolist() == [(1 << 32) + n for n in range(5)]
    away = write_shards(tmp_path / "else", [3])
    nursery().predict("data=shards", f"data.shards={away[0]}", f"output_dir={other}").expect(0)
    with pytest.raises(OutputError, match="no image in common"):
        pair(open_output(small), open_output(other))
    assert lora_clip("compare", small, other).returncode == 2


def test_a_model_that_is_gone_leaves_the_rest(base: Path, adapted: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(adapted, tmp_path / "copy"))
    text = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(text.replace("/demo/adapter", "/demo/gone"))
    first, second = open_output(base), open_output(copy)
    told = recall(first, second, pair(first, second))
    assert isinstance(told, str) and "cannot be told" in told
