"""A run that wants less or other than an earlier one did: it ends well, and what was done is kept."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from helpers.jobs import Outcome, identities, ledger, new_folder, nursery, snapshot, write_shard
from lora_clip.output.store import Store
from lora_clip.output.verify import verify
from lora_clip.types import ImageRow, WorkRange


@pytest.fixture
def interrupted() -> tuple[Path, Path]:
    """An input of three tars, and an output in which the middle of one is committed and nothing else."""
    place = new_folder()
    for seed in range(3):
        write_shard(place / f"in/{seed}.tar", 30, seed=seed)
    output = place / "out"
    run(place / "in", output).expect(0)
    forget(output, 0, 2)
    return place, output


def forget(output: Path, *shards: int) -> None:
    """Take an output back to before these shards were committed."""
    store, lines = Store(output), output / "ranks/rank_00000.jsonl"
    kept = [line for line in lines.read_text().splitlines() if json.loads(line)["shard"] not in shards]
    lines.write_text("".join(f"{line}\n" for line in kept))
    for shard, kind in itertools.product(shards, ("img_emb", "metadata")):
        store.path(kind, shard).unlink()
    (output / "manifest.json").unlink()
    assert not set(shards) & set(store.snapshot().committed)


def run(source: Path, output: Path, *more: str, batch_size: int = 8) -> Outcome:
    where = ("data=shards", f"data.shards={source}", f"output_dir={output}")
    return nursery().predict(*where, f"data.batch_size={batch_size}", *more)


def test_a_limit_after_an_interrupted_run(interrupted: tuple[Path, Path]) -> None:
    place, output = interrupted
    run(place / "in", output, "data.limit=25").expect(0)
    assert Counter(shard for shard, _ in identities(output)) == {0: 25, 1: 30}
    run(place / "in", output).expect(0)
    assert len(identities(output)) == len(set(identities(output))) == 90


def test_other_shards_after_an_interrupted_run(interrupted: tuple[Path, Path]) -> None:
    place, output = interrupted
    write_shard(place / "other/9.tar", 7, seed=9)
    run(place / "other", output).expect(0)
    assert Counter(shard for shard, _ in identities(output)) == {1: 30, 3: 7}
    run(place / "in", output).expect(0)
    assert len(identities(output)) == 97


def test_a_tar_that_was_listed_and_then_removed(interrupted: tuple[Path, Path]) -> None:
    place, output = interrupted
    (place / "in/0.tar").unlink()
    run(place / "in", output).expect(0)
    assert {shard for shard, _ in identities(output)} == {1, 2}


def test_another_batch_size_goes_on_and_says_that_bytes_may_differ() -> None:
    place = new_folder()
    write_shard(place / "in/0.tar", 30)
    first = run(place / "in", place / "out", "data.limit=8").expect(0)
    second = run(place / "in", place / "out", "data.limit=16").expect(0)
    assert "last bits" not in first.stdout + second.stdout
    third = run(place / "in", place / "out", batch_size=4).expect(0)
    told = [line for line in third.stdout.splitlines() if "last bits" in line]
    assert len(told) == 1 and "batch_size 8 (now 4)" in told[0]
    assert len(identities(place / "out")) == 30
    assert [json.loads(line)["batch_size"] for line in (place / "out/runs.jsonl").read_text().splitlines()] == [8, 8, 4]
    run(place / "in", place / "out", batch_size=2).expect(0)
    assert len((place / "out/runs.jsonl").read_text().splitlines()) == 3, "a run that embeds nothing changes no byte"


def test_work_beyond_a_gap_is_kept_and_used_later() -> None:
    place = new_folder()
    write_shard(place / "in/0.tar", 40)
    whole, output = place / "whole", place / "out"
    run(place / "in", whole).expect(0)
    run(place / "in", output, "data.limit=8").expect(0)
    beyond_a_gap(place, output)
    run(place / "in", output, "data.limit=16").expect(0)
    assert len(identities(output)) == 16
    assert verify(output, {0: 16}).problems == []
    before = sum(line["stop"] - line["start"] for found in ledger(output).values() for line in found)
    run(place / "in", output).expect(0)
    assert snapshot(output) == snapshot(whole)
    after = [line for found in ledger(output).values() for line in found if (line["start"], line["stop"]) == (24, 40)]
    assert len(after) == 1 and before == 8 + 16 + 8 + 16


def beyond_a_gap(place: Path, output: Path) -> None:
    """Commit positions 24 to 40 of the shard, as a rank of an interrupted run would have."""
    source, store = Store(place / "whole"), Store(output)
    rows = [ImageRow(**row) for row in pq.read_table(source.path("metadata", 0)).to_pylist()[24:]]
    store.write(1, WorkRange(0, 24, 40), False, np.load(source.path("img_emb", 0))[24:], rows, [])
