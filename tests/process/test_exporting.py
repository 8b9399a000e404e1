"""`lora-clip export` as it is typed, and killed at any moment."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

from helpers.embeddings import vectors, write_output
from helpers.exports import read_export, same_as_output, stamps
from helpers.jobs import environment, lora_clip, uninterrupted, wait_for

needs_lance = pytest.mark.skipif(find_spec("lance") is None, reason="pylance is not installed: the extra export has it")
FEW_ROWS_A_COMMIT = """
import sys
from lora_clip.app.command import main
from lora_clip.export import lance_table
lance_table.ROWS_PER_COMMIT = 200
sys.exit(main())
"""
KILLS = 4


@pytest.mark.parametrize("kind", ["parquet", "hf", pytest.param("lance", marks=needs_lance)])
def test_an_export_of_a_job_says_what_it_did_and_how_it_is_opened(kind: str, tmp_path: Path) -> None:
    output = uninterrupted("data.limit=60")
    done = lora_clip("export", output, "--to", kind, "--into", tmp_path / "to")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("exported: 60 rows (2 shards added)\nopen it:  ") and str(tmp_path) in done.stdout
    same_as_output(read_export(kind, tmp_path / "to"), output)
    again = lora_clip("export", output, "--to", kind, "--into", tmp_path / "to")
    assert again.stdout.startswith("exported: 60 rows (2 shards as before)\n")


@pytest.mark.parametrize("kind", ["parquet", pytest.param("lance", marks=needs_lance)])
def test_an_export_that_is_killed_can_be_read_and_the_next_one_completes_it(kind: str, tmp_path: Path) -> None:
    shards = {number: vectors(100, width=64, seed=number) for number in range(60)}
    root, into = write_output(tmp_path / "out", shards), tmp_path / "to"
    line = [sys.executable, "-c", FEW_ROWS_A_COMMIT, "export", str(root), "--to", kind, "--into", str(into)]
    chance, seen = random.Random(3), 0
    for _ in range(KILLS):
        before = stamps([into])
        running = subprocess.Popen(line, env=environment(), stdout=subprocess.DEVNULL)
        assert wait_for(partial(has_written, into, before, running))
        time.sleep(chance.uniform(0, 0.15))
        running.kill()
        running.wait()
        seen = max(seen, check_readable(kind, into, shards, seen))
    done = subprocess.run(line, env=environment(), check=True, capture_output=True, text=True)
    assert "shards as before" in done.stdout if seen else True
    same_as_output(read_export(kind, into), root)
    assert not [path for path in into.rglob("*") if path.name.endswith((".tmp", ".lock"))]


def has_written(into: Path, before: dict[str, tuple[int, int]], running: subprocess.Popen) -> bool:
    return stamps([into]) != before or running.poll() is not None


def check_readable(kind: str, into: Path, shards: dict, least: int) -> int:
    """Assert that whole shards are there, each once, no fewer than before; returns the number of rows."""
    if kind == "lance" and not (into / "embeddings.lance/_versions").is_dir():
        return 0
    if kind == "parquet" and not list(into.glob("*.parquet")):
        return 0
    table = read_export(kind, into)
    counts = table.group_by("shard").aggregate([("position", "count")]).to_pydict()
    assert set(counts["position_count"]) == {100} and len(table) >= least
    return len(table)
