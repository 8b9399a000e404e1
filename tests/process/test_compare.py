"""Which output is best, and what changed between two: measured on outputs of which it is known."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers.images import write_shards
from helpers.jobs import lora_clip, new_folder, nursery, uninterrupted
from lora_clip.compare.best import best, sentence
from lora_clip.compare.intersection import common
from lora_clip.compare.measures import Comparison, cosines, kept, measure
from lora_clip.compare.page import page
from lora_clip.compare.table import lines
from lora_clip.errors import OutputError
from lora_clip.evaluate.run import evaluate
from lora_clip.evaluate.texts import Wanted
from lora_clip.search import open_output
from lora_clip.search.exact import NO_ROW


@pytest.fixture(scope="module")
def base() -> Path:
    return uninterrupted("model=demo_base")


@pytest.fixture(scope="module")
def adapted() -> Path:
    return uninterrupted("index=true")


@pytest.fixture(scope="module")
def three(base: Path, adapted: Path) -> Comparison:
    """The base, the adapter, and the adapter once more: two of them alike, one not."""
    return measure([open_output(root) for root in (base, adapted, adapted)], Wanted())


def test_an_output_differs_from_itself_in_nothing(three: Comparison) -> None:
    _, first, second = three.outputs
    found = cosines(first, second)
    assert three.images == 400 and found is not None and np.abs(found - 1).max() < 2e-3
    assert (kept(first, second) == 10).all()
    assert first.figures == second.figures != ()


def test_the_figures_are_those_of_evaluate(three: Comparison, base: Path, adapted: Path) -> None:
    for output, root in zip(three.outputs, (base, adapted), strict=False):
        assert output.figures == evaluate(open_output(root), Wanted())


def test_the_best_is_told_at_one_glance(base: Path, adapted: Path, tmp_path: Path) -> None:
    shown = tmp_path / "page.html"
    other = Path(shutil.copytree(adapted, tmp_path / "step-2000"))
    done = lora_clip("compare", base, adapted, other, "--output", shown)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    names = [f"{root.parent.name}/{root.name}" for root in (base, adapted)] + [other.name]
    rows = {line.split()[0]: line.split()[1:] for line in said if line.split()[:1] and line.split()[0] in names}
    assert list(rows) == names, "of one name, they are told apart by as much of their paths as it takes"
    assert float(rows[names[0]][0]) < 0.1 and rows[names[1]][0].endswith("~") and rows[names[1]] == rows[names[2]]
    assert float(rows[names[1]][0].rstrip("~")) > 0.9
    (verdict,) = [line for line in said if line.startswith("best: ")]
    assert verdict.split(None, 1)[1].startswith(f"{names[1]} and {names[2]} by mAP") and verdict.endswith(
        "clearly apart"
    )
    text = shown.read_text()
    assert text.count("<details>") == 2 and text.count("<svg") == 1 + 2 * 3 and "Which of 3 outputs" in text
    assert f"Best: {names[1]} and {names[2]} by mAP" in text and 'class="close"' in text


def test_two_outputs_are_shown_in_detail(base: Path, adapted: Path, tmp_path: Path) -> None:
    shown = tmp_path / "page.html"
    done = lora_clip("compare", base, adapted, "--output", shown)
    assert done.returncode == 0, done.stderr
    assert "cosine:     median" in done.stdout and "neighbours: " in done.stdout and "* best" in done.stdout
    text = shown.read_text()
    assert text.count("<svg") == 3 and "texts are found" in text and "default-src 'none'" in text
    assert text.count('class="case"') >= 10 and "no picture" not in text and "<details" not in text


def test_a_pair_of_several_is_named_by_path_or_name(base: Path, adapted: Path, tmp_path: Path) -> None:
    shown = tmp_path / "page.html"
    other = Path(shutil.copytree(adapted, tmp_path / "step-2000"))
    typed = ("compare", base, adapted, other, "--texts", 20, "--output", shown, "--pair")
    done = lora_clip(*typed, adapted, "step-2000")
    assert done.returncode == 0, done.stderr
    assert "cosine:     median 1.000" in done.stdout and "<details" not in shown.read_text()
    wrong = lora_clip(*typed, adapted, "step-3000")
    assert wrong.returncode == 2 and "step-3000: this is none of the outputs" in wrong.stderr
    assert "is one output" in lora_clip(*typed, other, "step-2000").stderr
    alone = lora_clip("compare", base)
    assert alone.returncode == 2 and "name two outputs or more" in alone.stderr


def test_the_cosines_and_neighbours_are_those_of_the_embeddings(three: Comparison) -> None:
    first, second, _ = three.outputs
    one_ND, other_ND = (side.collection.rows.embeddings(side.ids_N) for side in (first, second))
    found = cosines(first, second)
    assert found is not None
    np.testing.assert_allclose(found, (one_ND * other_ND).sum(1), atol=1e-5)
    ten = [set(np.argsort(-(side @ side[5]), kind="stable")[:11].tolist()) - {5} for side in (one_ND, other_ND)]
    assert set(first.near_SK[5].tolist()) == ten[0]
    assert kept(first, second)[5] == len(ten[0] & ten[1])


def test_only_common_images_are_compared(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [6, 5])
    small, large, other = (new_folder() / "output" for _ in range(3))
    nursery().predict("data=shards", f"data.shards={shards[1]}", f"output_dir={small}").expect(0)
    nursery().predict("data=shards", f"data.shards={tmp_path}", f"output_dir={large}").expect(0)
    ids = common([open_output(root) for root in (small, large, small)])
    expected = [list(range(5)), [(1 << 32) + n for n in range(5)], list(range(5))]
    assert [ids_N.tolist() for ids_N in ids] == expected
    measured = measure([open_output(large), open_output(small)], Wanted("label"))
    near_SK = measured.outputs[0].near_SK
    assert near_SK.shape == (5, 10) and ((near_SK == NO_ROW).sum(axis=1) == 6).all(), "six are not in both"
    assert measured.images == 5 and "no image has a text" in measured.trouble
    assert "no image has a text" in page(measured, [(0, 1)]) and "best:" not in "\n".join(lines(measured, None))
    away = write_shards(tmp_path / "else", [3])
    nursery().predict("data=shards", f"data.shards={away[0]}", f"output_dir={other}").expect(0)
    with pytest.raises(OutputError, match="no image in common"):
        common([open_output(small), open_output(other)])
    assert lora_clip("compare", small, other).returncode == 2


def test_a_model_that_is_gone_leaves_the_rest(base: Path, adapted: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(adapted, tmp_path / "copy"))
    text = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(text.replace("/demo/adapter", "/demo/gone"))
    measured = measure([open_output(root) for root in (base, adapted, copy)], Wanted())
    assert "cannot be told" in measured.outputs[2].trouble and measured.outputs[2].figures == ()
    assert list(best(measured.outputs, 0).places) == [1] and "clearly apart" in sentence(measured.outputs)
    said = "\n".join(lines(measured, None))
    assert "What texts find in copy cannot be told" in said and "0.968*" in said
    assert "not known" in page(measured, [(0, 1), (0, 2)])
