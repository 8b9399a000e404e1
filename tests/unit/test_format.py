"""docs/format.md tells what the code writes."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from helpers.embeddings import vectors, write_output
from lora_clip.output import housekeeping, layout
from lora_clip.output.ledger import CommittedRange
from lora_clip.output.notes import RunNotes, add_notes, take_notes
from lora_clip.output.tables import METADATA_SCHEMA, NORM_TOLERANCE, REJECTS_SCHEMA, ROWS_PER_GROUP
from lora_clip.sources.base import Shard
from lora_clip.types import WorkRange

PAGE = (Path(__file__).parents[2] / "docs/format.md").read_text()
TYPES = {"int": int, "float": float, "bool": bool, "string": str, "object": dict}


def section(title: str) -> str:
    """The text below a heading."""
    [found] = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    return str(found)


def table(title: str) -> dict[str, str]:
    """Names and types of the table below a heading, in its order."""
    return dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", section(title), re.MULTILINE))


@pytest.mark.parametrize(("title", "schema"), [("metadata", METADATA_SCHEMA), ("rejects", REJECTS_SCHEMA)])
def test_the_columns_are_those_of_the_schema(title: str, schema: pa.Schema) -> None:
    assert list(table(title).items()) == [(field.name, str(field.type)) for field in schema]


def test_the_lines_of_the_ledger_and_of_the_runs_are_those_that_are_written(tmp_path: Path) -> None:
    write_output(tmp_path, {0: vectors(5)})
    proof = {"images": 2, "reference": "base", "cosine": 1.0, "centred": None}
    decoding = {"images": 2, "mean": 0.1, "most": 3, "cosine": 1.0, "centred": None}
    add_notes(tmp_path, take_notes(torch.device("cpu"), False, 8), proof, decoding)
    assert list(table("ranks: the ledger")) == [field.name for field in fields(CommittedRange)]
    assert list(table("runs.jsonl")) == ["started", *(field.name for field in fields(RunNotes)), "proof", "decoding"]
    for title, path in (("ranks: the ledger", "ranks/rank_00000.jsonl"), ("runs.jsonl", "runs.jsonl")):
        line = json.loads((tmp_path / path).read_text())
        assert {name: type(value) for name, value in line.items()} == {
            name: TYPES[kind] for name, kind in table(title).items()
        }


def test_the_lines_of_the_input_are_those_of_a_shard() -> None:
    assert list(table("inputs.jsonl")) == [*(field.name for field in fields(Shard)), "wanted"]


def test_names_figures_and_the_version_are_those_of_the_code() -> None:
    tree = PAGE.partition("```\n")[2].partition("```")[0]
    for name in (*housekeeping.FOLDERS, *housekeeping.FILES, ".lock"):
        assert re.search(rf"(^|[\s,]){re.escape(name)}[/\s,]", tree), f"{name} is not in the tree of files"
    assert layout.file_name("img_emb", 42) in tree
    assert layout.range_name("img_emb", WorkRange(42, 0, 1024)) in section("parts")
    assert f"names the version: `{layout.FORMAT}`" in PAGE
    assert all(f"| `{name}` |" in section("Versions") for name in layout.READABLE)
    assert f"{ROWS_PER_GROUP:,} rows" in section("metadata")
    assert all(f"{tolerance:.4g}" in section("img_emb") for tolerance in NORM_TOLERANCE.values())
