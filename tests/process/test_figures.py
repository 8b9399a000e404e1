"""`lora-clip evaluate` on the demo's output: figures of which it is known what they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.jobs import lora_clip, uninterrupted
from lora_clip.search import open_output


@pytest.fixture(scope="module")
def adapted() -> Path:
    return uninterrupted("index=true")


def test_the_figures_are_those_of_the_whole_matrix(adapted: Path) -> None:
    done = lora_clip("evaluate", adapted, "--json")
    assert done.returncode == 0, done.stderr
    found = {(figure["direction"], figure["name"]): figure for figure in json.loads(done.stdout)}
    collection = open_output(adapted)
    ids_N = np.concatenate([ids_N for ids_N, _ in collection.rows.stream()])
    captions = [row["caption"] for row in collection.rows.metadata(ids_N)]
    assert len(set(captions)) == len(captions) == 400
    cosines_NN = collection.encoder.text(captions) @ collection.rows.embeddings(ids_N).T
    for direction, matrix_NN in (("text to image", cosines_NN), ("image to text", cosines_NN.T)):
        ranks_N = (matrix_NN >= np.diag(matrix_NN)[:, None]).sum(axis=1)
        wanted = {f"recall@{k}": (ranks_N <= k).mean() for k in (1, 5, 10)}
        wanted |= {"median rank": np.median(ranks_N), "mAP": (1 / ranks_N).mean()}
        for name, value in wanted.items():
            assert found[direction, name]["value"] == pytest.approx(value, abs=0.003), (direction, name)
            assert found[direction, name]["low"] <= value <= found[direction, name]["high"]
            assert found[direction, name]["queries"] == 400


def test_a_person_reads_a_table(adapted: Path) -> None:
    done = lora_clip("evaluate", adapted, "--template", "a picture of a {}", "--texts", 50)
    assert done.returncode == 0, done.stderr
    header, *rows = done.stdout.splitlines()
    assert header.split()[:3] == ["direction", "figure", "value"] and len(rows) == 10
    assert rows[0].startswith("text to image  recall@1") and rows[0].endswith(" 50") and rows[9].endswith(" 50")


def test_what_cannot_be_evaluated_is_one_message(adapted: Path) -> None:
    for words, told in (
        (("--by", "colour"), "no image has a text by 'colour'"),
        (("--template", "a photo"), "has no {} where a text goes"),
        (("--base", "/nowhere"), "/nowhere"),
    ):
        done = lora_clip("evaluate", adapted, *words)
        assert (done.returncode, done.stdout) == (2, "") and told in done.stderr
    assert lora_clip("evaluate", adapted, "--texts", "0").returncode == 2
