"""The examples run as they stand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.jobs import PROJECT, uninterrupted

NOTEBOOKS = sorted((PROJECT / "examples").glob("*.ipynb"))


def found_in_order(names: dict[str, Any]) -> None:
    hits = names["hits"]
    assert isinstance(hits, list) and len(hits) == 5 and hits[0].score >= hits[4].score


def embedded_as_the_job_does(names: dict[str, Any]) -> None:
    assert names["right"].mean() > 0.9 and names["least_cosine"] > 0.999


CHECKS = {"search.ipynb": found_in_order, "embed.ipynb": embedded_as_the_job_does}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_from_its_first_cell_to_its_last(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = uninterrupted("data.limit=60")
    (tmp_path / "outputs").symlink_to(output)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in json.loads(notebook.read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), notebook.name, "exec"), names)
    CHECKS[notebook.name](names)


def test_there_is_a_notebook() -> None:
    assert NOTEBOOKS
