"""The examples run as they stand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.jobs import PROJECT, uninterrupted

NOTEBOOKS = sorted((PROJECT / "examples").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_from_its_first_cell_to_its_last(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = uninterrupted("data.limit=60")
    (tmp_path / "outputs").symlink_to(output)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for cell in json.loads(notebook.read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), notebook.name, "exec"), names)
    hits = names["hits"]
    assert isinstance(hits, list) and len(hits) == 5 and hits[0].score >= hits[4].score


def test_there_is_a_notebook() -> None:
    assert NOTEBOOKS
