"""Workers that die or hang in whole jobs: the image that was in hand is a reject, and everything else is as ever."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from helpers.images import jpeg, write_tar
from helpers.jobs import Gate, Outcome, nursery, wait_for

IMAGES = 60
CRASHES, HANGS = (7, 8, 41), (23,)
DECODER = f"""
import os, signal, time
from lora_clip.loading import apart, dataset
from lora_clip.pixels.decode import prepare

def fragile(data, *rest):
    number = int.from_bytes(data[-2:], "big")  # behind the end of the image
    if number in {CRASHES}:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number in {HANGS}:
        time.sleep(1000)
    return prepare(data, *rest)

dataset.prepare = apart.prepare = fragile

def stage(samples):
    yield from samples
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fragile")
    for shard in range(3):
        numbers = range(shard * 20, shard * 20 + 20)
        write_tar(folder / f"{shard}.tar", {f"{n:03d}.jpg": jpeg(30, 20, n) + n.to_bytes(2, "big") for n in numbers})
    return folder


def embed(shards: Path, output: Path, *overrides: str, **options: Any) -> Outcome:
    arguments = ("data=shards", f"data.shards={shards}", f"output_dir={output}", "data.batch_size=4")
    return nursery().predict(*arguments, *overrides, **options).expect(0)


def rejects(output: Path) -> dict[int, str]:
    """Why images are rejected, by their numbers."""
    tables = [pq.read_table(path).to_pylist() for path in sorted((output / "rejects").glob("*.parquet"))]
    return {20 * row["shard"] + row["position"]: row["error"] for rows in tables for row in rows}


def rows(output: Path) -> dict[int, np.ndarray]:
    """The embeddings by the numbers of their images."""
    found = {}
    for path in sorted((output / "img_emb").glob("*.npy")):
        table = pq.read_table(output / "metadata" / path.name.replace("img_emb", "metadata").replace("npy", "parquet"))
        for row, embedding_D in zip(table.to_pylist(), np.load(path), strict=True):
            found[20 * row["shard"] + row["position"]] = embedding_D
    return found


@pytest.mark.parametrize(("ranks", "workers"), [(1, 2), (2, 1)])
def test_a_decoder_that_crashes_or_hangs_costs_its_images_and_no_other(
    shards: Path, tmp_path: Path, ranks: int, workers: int
) -> None:
    (tmp_path / "fragile_decoder.py").write_text(DECODER)
    given = ["data.stages=[fragile_decoder:stage]", "data.decode_seconds=2", f"data.num_workers={workers}"]
    output = tmp_path / "output"
    outcome = nursery().predict(
        "data=shards", f"data.shards={shards}", f"output_dir={output}", "data.batch_size=4", *given,
        ranks=ranks, folder=tmp_path,
    ).expect(0)  # fmt: skip
    found = rejects(output)
    assert sorted(found) == sorted([*CRASHES, *HANGS])
    assert {found[number] for number in CRASHES} == {"the decoder crashed (signal 11: Segmentation fault)"}
    assert found[HANGS[0]] == "the decoder took longer than 2 s"
    assert f"{IMAGES} images in 3 shards = {IMAGES - 4} embeddings" in outcome.stdout
    embed(shards, tmp_path / "plain")
    kept, all_ND = (rows(root) for root in (output, tmp_path / "plain"))
    assert {number: kept[number].tobytes() for number in kept} == {
        number: all_ND[number].tobytes() for number in all_ND if number not in found
    }


def test_a_worker_that_is_killed_costs_nothing(shards: Path, tmp_path: Path) -> None:
    output, gate = tmp_path / "output", Gate(30)
    job = nursery().start(
        "data=shards", f"data.shards={shards}", f"output_dir={output}", "data.batch_size=4", "data.num_workers=1",
        Gate.TYPED, **gate.options,
    )  # fmt: skip
    assert wait_for(lambda: any((output / "ranks").glob("*.jsonl")))
    (worker,) = psutil.Process(job.pid).children(recursive=True)
    worker.send_signal(signal.SIGKILL)
    gate.open()
    outcome = job.wait().expect(0)
    assert "60 images in 3 shards = 60 embeddings" in outcome.stdout
    lines = [json.loads(line) for path in (output / "ranks").glob("*.jsonl") for line in path.read_text().splitlines()]
    assert sum(line["rows"] for line in lines if line["final"]) == IMAGES
