"""data.decode=gpu in whole jobs, with a stand-in for nvJPEG: what comes out, what is told, and where it is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from helpers.images import encode, jpeg, photo, png, write_tar
from helpers.jobs import Outcome, check_layout, nursery, snapshot
from helpers.stand_in import REFUSED

IMAGES = 48
STAGE = f"""
import sys

sys.path.insert(0, {str(Path(__file__).parents[1])!r})

from helpers import stand_in

stand_in.install()

def stage(samples):
    yield from samples
"""


def image(number: int) -> bytes:
    """Mostly ordinary JPEGs; some for the worker, one refused by the device, one by all."""
    others = {
        5: png(40, 30, number),
        13: encode(photo(40, 30, number), "JPEG", progressive=True),
        20: jpeg(40, 30, number) + REFUSED,
        21: jpeg(64, 64, number)[:-300],
    }
    return others.get(number, jpeg(40 + number, 90 - number, number))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    for shard in range(3):
        numbers = range(shard * 16, shard * 16 + 16)
        write_tar(folder / f"{shard}.tar", {f"{number:03d}.jpg": image(number) for number in numbers})
    return folder


def embed(shards: Path, output: Path, decode: str, workers: int = 2, ranks: int = 1) -> Outcome:
    """A job that has the stand-in, started where its module lies."""
    (output.parent / "stand_in_stage.py").write_text(STAGE)
    arguments = (
        "data=shards", f"data.shards={shards}", f"output_dir={output}", "data.batch_size=4", "output.dtype=float32",
        "trainer.accelerator=cpu", "data.stages=[stand_in_stage:stage]",
        f"data.num_workers={workers}", f"data.decode={decode}",
    )  # fmt: skip
    return nursery().predict(*arguments, ranks=ranks, folder=output.parent)


def embeddings(output: Path) -> np.ndarray:
    return np.concatenate([np.load(path) for path in sorted((output / "img_emb").iterdir())])


def tables(output: Path, kind: str) -> list[dict[str, object]]:
    return [row for path in sorted((output / kind).iterdir()) for row in pq.read_table(path).to_pylist()]


def test_a_job_gives_the_rows_and_rejects_of_exact_and_tells_the_distance(shards: Path, tmp_path: Path) -> None:
    exact, first, second = (tmp_path / name for name in ("exact", "first", "second"))
    embed(shards, exact, "exact").expect(0)
    outcome = embed(shards, first, "gpu").expect(0)
    check_layout(first, rows=IMAGES - 1, rejects=1)
    for kind in ("metadata", "rejects"):
        assert tables(first, kind) == tables(exact, kind)
    assert np.sum(embeddings(first) * embeddings(exact), axis=1).min() > 0.999
    (line,) = (line for line in outcome.stdout.splitlines() if line.startswith("data.decode=gpu on "))
    manifest = json.loads((first / "manifest.json").read_text())
    told = manifest["decoding"]
    assert f"{told['images']} images of yours: pixels" in line and f"{told['cosine']:.6f}" in line
    assert told["images"] >= 16 and told["most"] <= 2 and told["cosine"] > 0.999 and told["centred"] is not None
    assert manifest["fingerprint"]["decode"] == "gpu"
    assert "decoding" not in json.loads((exact / "manifest.json").read_text())
    assert line in (first / "report.html").read_text()
    embed(shards, second, "gpu", workers=1, ranks=2).expect(0)
    assert snapshot(second) == snapshot(first), "the same bytes, whoever took the work"
    assert "decode: gpu there, exact wanted" in embed(shards, first, "exact").expect(2).stderr


def test_without_a_gpu_it_is_told_before_anything_is_written(shards: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    given = ("data=shards", f"data.shards={shards}", f"output_dir={output}", "trainer.accelerator=cpu")
    outcome = nursery().predict(*given, "data.decode=gpu").expect(2)
    assert "data.decode=gpu needs a CUDA GPU" in outcome.stderr and "data.decode=exact" in outcome.stderr
    assert "Traceback" not in outcome.stderr and not output.exists()
