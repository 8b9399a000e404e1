"""What the embeddings go to: each example finds what `lora-clip search` finds, and runs as its first lines say."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from helpers.jobs import PROJECT, environment, lora_clip, new_folder, uninterrupted
from lora_clip import open_output

QUERY = "a red apple"
EXPORTS = {"lancedb": "lance", "duckdb": "parquet", "qdrant_client": None}


@cache
def exported(kind: str | None) -> Path:
    """An output with its export in it."""
    output = new_folder() / "output"
    shutil.copytree(uninterrupted("data.limit=60"), output)
    if kind:
        assert lora_clip("export", output, "--to", kind).returncode == 0
    return output


def run(name: str, output: Path) -> list[str]:
    """The keys that an example prints, best first."""
    line = [sys.executable, str(PROJECT / "examples" / name), str(output), QUERY]
    done = subprocess.run(line, capture_output=True, text=True, env=environment(), check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return [row.split()[1] for row in done.stdout.splitlines()]


def load(name: str) -> dict:
    """An example's functions."""
    names: dict = {"__name__": "example"}
    exec(compile((PROJECT / "examples" / name).read_text(), name, "exec"), names)
    return names


def by_lancedb(output: Path, least: int) -> list[tuple[str, float]]:
    return [(hit["key"], hit["score"]) for hit in load("lancedb_search.py")["search"](output, QUERY, least)]


def by_duckdb(output: Path, least: int) -> list[tuple[str, float]]:
    return [(key, score) for key, _, _, score in load("duckdb_search.py")["search"](output, QUERY, least)]


def by_qdrant(output: Path, least: int) -> list[tuple[str, float]]:
    from qdrant_client import QdrantClient

    example, client = load("qdrant_search.py"), QdrantClient(":memory:")
    for _ in range(2):
        example["upload"](client, output)
    assert client.count("images").count == 60, "a second upload adds nothing"
    points = example["search"](client, output, QUERY, least)
    client.close()
    return [(point.payload["key"], point.score) for point in points]


@pytest.mark.parametrize(
    ("package", "name", "found_by"),
    [
        ("lancedb", "lancedb_search.py", by_lancedb),
        ("duckdb", "duckdb_search.py", by_duckdb),
        ("qdrant_client", "qdrant_search.py", by_qdrant),
    ],
)
def test_an_example_finds_what_our_own_search_finds(
    package: str, name: str, found_by: Callable[[Path, int], list[tuple[str, float]]]
) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed: the extra dev has it")
    output = exported(EXPORTS[package])
    hits = open_output(output).search_text(QUERY, 60)
    assert run(name, output) == [hit.key for hit in hits[:5]]
    least = sorted(hit.width for hit in hits)[30]
    wide = [hit for hit in hits if hit.width >= least][:5]
    found = found_by(output, least)
    assert [key for key, _ in found] == [hit.key for hit in wide]
    assert [score for _, score in found] == pytest.approx([hit.score for hit in wide], abs=2e-3)
