"""The whole job in real processes: every image exactly once, the same bytes on any number of ranks and workers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from helpers.images import jpeg, write_tar
from helpers.jobs import (
    PROJECT,
    Meeting,
    Outcome,
    check_layout,
    committed,
    everything,
    free_port,
    identities,
    ledger,
    malformed,
    new_folder,
    nursery,
    predict,
    session_folder,
    snapshot,
    uninterrupted,
    write_shard,
)
from lora_clip.demo import DEMO

IMAGES = 400


@pytest.fixture(scope="module")
def shards() -> Path:
    """Tars of 11, 0, 1 and 30 pictures, and one with pictures that are none (2 sound, 6 not)."""
    folder = new_folder()
    for number, size in enumerate((11, 0, 1, 30)):
        write_shard(folder / f"{number}.tar", size, seed=number)
    write_shard(folder / "9.tar", 2, seed=9, more={f"{name}.jpg": data for name, data in malformed().items()})
    return folder


def typed(shards: Path, *more: str) -> tuple[str, ...]:
    return "data=shards", f"data.shards={shards}", "data.batch_size=4", *more


@pytest.fixture(scope="module")
def plain(shards: Path) -> Path:
    """What one rank without workers makes of them."""
    output = new_folder() / "output"
    nursery().predict(*typed(shards, f"output_dir={output}", "data.num_workers=0")).expect(0)
    return output


def test_every_image_is_a_row_or_a_reject(shards: Path, plain: Path) -> None:
    assert identities(plain) == [
        (shard, position) for shard, size in ((0, 11), (2, 1), (3, 30), (4, 8)) for position in range(size)
    ]
    check_layout(plain, rows=11 + 1 + 30 + 2, rejects=6)
    assert {path.name for path in (plain / "img_emb").iterdir()} == {
        f"img_emb_00000{shard}.npy" for shard in (0, 2, 3, 4)
    }


def test_rejects_say_why(plain: Path) -> None:
    rejects = pq.read_table(plain / "rejects").to_pydict()
    assert rejects["key"] == list(malformed()) and set(rejects["stage"]) <= {"read", "decode"}
    assert all(len(error) > 8 for error in rejects["error"]), rejects["error"]


@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (1, 3), (2, 0), (2, 2), (3, 1), (3, 4)])
def test_the_same_bytes_on_any_number_of_ranks_and_workers(ranks: int, workers: int, shards: Path, plain: Path) -> None:
    output = new_folder() / "output"
    nursery().predict(*typed(shards, f"output_dir={output}", f"data.num_workers={workers}"), ranks=ranks).expect(0)
    assert snapshot(output) == snapshot(plain)
    assert len(committed(output)) == len(set(committed(output))) == 50


@pytest.mark.parametrize(("launcher", "ranks"), [("python", 2), ("torchrun", 3)])
def test_the_demo_under_real_launchers(launcher: str, ranks: int) -> None:
    output = new_folder() / "output"
    line = (f"output_dir={output}", Meeting.TYPED)
    outcome = predict(*line, ranks=ranks, launcher=launcher, **Meeting(ranks).options).expect(0)
    assert snapshot(output) == snapshot(uninterrupted())
    check_layout(output, rows=IMAGES)
    assert f"verified: {IMAGES} images" in outcome.stdout
    assert len(ledger(output)) == ranks
    assert {name for name in everything(output) if "/" not in name} == {
        ".lock", "fingerprint.json", "img_emb", "inputs.jsonl", "manifest.json", "metadata", "ranks", "report.html",
        "runs.jsonl", "timeline",
    }  # fmt: skip
    check_screen(outcome)


def check_screen(outcome: Outcome) -> None:
    """Nothing but the bar on stderr; torchrun may add its notice of OMP_NUM_THREADS."""
    for noise in ("Warning", "warning", "Traceback", "Tip", "litlogger", "LOCAL_RANK", "GPU available", "it/s]"):
        assert noise not in outcome.stderr, outcome.stderr
    lines = [line for line in outcome.stderr.replace("\r", "\n").splitlines() if line.strip()]
    lines = [line for line in lines if "OMP_NUM_THREADS" not in line and not line.startswith("*****")]
    assert all("images/s" in line for line in lines), outcome.stderr


def test_more_workers_than_cores_is_no_warning() -> None:
    check_screen(nursery().predict(f"output_dir={new_folder() / 'output'}", "data.num_workers=9").expect(0))


def test_one_big_tar_is_shared_by_ranks_and_workers() -> None:
    place = new_folder()
    write_shard(place / "big.tar", 96, seed=5)
    plain, output = place / "plain", place / "output"
    nursery().predict(*typed(place / "big.tar", f"output_dir={plain}", "data.num_workers=0")).expect(0)
    line = typed(place / "big.tar", f"output_dir={output}", "data.num_workers=2", Meeting.TYPED)
    nursery().predict(*line, ranks=2, **Meeting(2).options).expect(0)
    assert snapshot(output) == snapshot(plain)
    pieces = [line for lines in ledger(output).values() for line in lines if not line["final"]]
    by_rank = [sum(line["rows"] for line in lines if not line["final"]) for lines in ledger(output).values()]
    assert len(pieces) > 4 and min(by_rank) >= 4 and sum(by_rank) == 96, "both ranks take some, whoever is free"
    check_layout(output, rows=96)


def test_a_rank_with_nothing_to_do() -> None:
    output = new_folder() / "output"
    nursery().predict(f"output_dir={output}", "data.limit=1", "data.num_workers=2", ranks=3).expect(0)
    check_layout(output, rows=1)


def test_ranks_send_one_another_no_weights() -> None:
    """They read the same files; Lightning would broadcast rank 0's: gigabytes, over the network that brings images."""
    script = str(PROJECT / "tests/helpers/own_weights.py")
    said = nursery().start_script([script], ranks=2).wait().expect(0).stdout
    assert sorted(said.splitlines()) == [f"{rank} {[float(rank)] * 3} {[float(rank)] * 3} gloo" for rank in (0, 1)]


def test_nothing_is_missing() -> None:
    output = uninterrupted("data.limit=9")
    before = snapshot(output), everything(output), (output / "manifest.json").read_text()
    for ranks in (1, 2):
        outcome = nursery().predict("data.limit=9", f"output_dir={output}", ranks=ranks).expect(0)
        assert "nothing is missing" in outcome.stdout
    assert (snapshot(output), everything(output), (output / "manifest.json").read_text()) == before


def test_nothing_is_missing_under_slurm() -> None:
    """Its tasks are there from the start: those that rank 0 sends no plan would wait until the time limit."""
    output, port = uninterrupted("data.limit=9"), str(free_port())
    shape = {"NTASKS": "2", "NTASKS_PER_NODE": "2", "NNODES": "1", "NODEID": "0", "JOB_ID": "1", "JOB_NAME": "job"}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "SLURM_NODELIST": "127.0.0.1"}
    given: dict[str, Any] = {f"SLURM_{name}": value for name, value in shape.items()} | meeting
    tasks = [
        nursery().start(
            "data.limit=9", f"output_dir={output}", "trainer.devices=2", SLURM_PROCID=task, SLURM_LOCALID=task, **given
        )
        for task in ("0", "1")
    ]
    first, second = (task.wait().expect(0) for task in tasks)
    assert "nothing is missing" in first.stdout and not second.stdout


def test_limit_takes_the_first_images() -> None:
    output = uninterrupted("data.limit=60")
    assert identities(output) == [
        *((0, position) for position in range(50)),
        *((1, position) for position in range(10)),
    ]


def test_a_reader_takes_metadata_as_one_table() -> None:
    table = ds.dataset(uninterrupted() / "metadata", format="parquet").to_table()
    assert len(table) == IMAGES and table.column_names[:2] == ["image_path", "key"]
    paths = table["image_path"].to_pylist()
    assert len(set(paths)) == IMAGES and paths[0].startswith(str(DEMO / "shards/00000.tar"))
    assert all(table["caption"].to_pylist()) and table["url"][0].as_py().startswith("https://")
    assert {"width", "height", "shard", "position"} <= set(table.column_names)


def test_float32_output() -> None:
    output = uninterrupted("output.dtype=float32", "data.limit=60")
    check_layout(output, rows=60)
    one, half = (np.load(path / "img_emb/img_emb_000000.npy") for path in (output, uninterrupted()))
    assert one.dtype.str == "<f4"
    np.testing.assert_array_equal(one.astype("<f2"), half)


def test_a_folder_of_images() -> None:
    pictures, output = new_folder(), new_folder() / "output"
    (pictures / "below").mkdir()
    for name in ("b.jpg", "a.v2.jpg", "below/a.jpg"):
        (pictures / name).write_bytes(jpeg(seed=len(name)))
    (pictures / "a.v2.txt").write_text("a caption")
    (pictures / "broken.jpg").write_bytes(b"no image")
    nursery().predict("data=folder", f"data.folder={pictures}", f"output_dir={output}").expect(0)
    check_layout(output, rows=3, rejects=1)
    table = pq.read_table(output / "metadata").to_pydict()
    assert table["key"] == ["a.v2", "b", "below/a"] and table["caption"] == ["a caption", None, None]


def test_the_same_file_names_in_two_shards() -> None:
    place, output = new_folder(), new_folder() / "output"
    for name in ("a.tar", "b.tar"):
        write_tar(place / name, {"same.jpg": jpeg(seed=1), "same.png": jpeg(seed=2)})
    nursery().predict(*typed(place, f"output_dir={output}")).expect(0)
    assert pq.read_table(output / "metadata")["key"].to_pylist() == ["same"] * 4
    check_layout(output, rows=4)


# --- A run that is going wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2])
def test_too_many_rejects_end_the_run(ranks: int) -> None:
    place, output = new_folder(), new_folder() / "output"
    write_shard(place / "0.tar", 20)
    write_tar(place / "1.tar", {f"{number}.jpg": b"<html>404" for number in range(20)})
    line = typed(place, f"output_dir={output}", "data.num_workers=1")
    outcome = nursery().predict(*line, "max_reject_fraction=0.2", ranks=ranks).expect(2)
    assert "max_reject_fraction" in outcome.stderr and "decode: " in outcome.stderr
    assert "Traceback" not in outcome.stderr and outcome.stderr.count("images rejected") == 1, outcome.stderr
    nursery().predict(*line, "max_reject_fraction=1", ranks=ranks).expect(0)
    check_layout(output, rows=20, rejects=20)


def test_too_many_rejects_in_all_end_the_run_on_any_number_of_ranks() -> None:
    place = new_folder()
    write_tar(place / "0.tar", {f"{at}.jpg": b"bad" if at % 3 else jpeg(seed=at) for at in range(60)})
    for ranks in (1, 3):
        line = typed(place, f"output_dir={place / str(ranks)}", "max_reject_fraction=0.5")
        outcome = nursery().predict(*line, ranks=ranks)
        assert outcome.status == 2, f"{ranks} ranks: 40 of 60 images were rejected\n{outcome.stderr}"


def test_images_that_are_all_rejected() -> None:
    place = new_folder()
    write_tar(place / "0.tar", {"a.jpg": b"bad", "b.jpg": b""})
    nursery().predict(*typed(place, f"output_dir={place / 'out'}", "max_reject_fraction=1")).expect(0)
    assert {name.split("/")[0] for name in snapshot(place / "out")} == {"rejects"}


# --- The manifest and verify.py --------------------------------------------------------------------------------------


def test_the_manifest_tells_what_and_how() -> None:
    manifest: dict[str, Any] = json.loads((uninterrupted() / "manifest.json").read_text())
    assert {"images": IMAGES, "rows": IMAGES, "rejects": 0, "shards": 8, "dtype": "float16"}.items() <= manifest.items()
    assert {"base", "adapter", "preprocessing", "model_dtype", "output_dtype"} <= manifest["fingerprint"].keys()
    assert str(manifest["model"]["lora"]["rank"]) == "16" and {"torch", "python"} <= manifest["versions"].keys()
    assert manifest["run"]["images"] == IMAGES
    assert manifest["run"]["wall_seconds"] >= manifest["run"]["startup_seconds"] > 0, "both count from the beginning"


def test_a_job_says_whether_it_compiles_where_that_is_left_to_it() -> None:
    output = new_folder() / "out"
    given = ("model.compile=auto", "data.limit=5", "trainer.accelerator=cpu", f"output_dir={output}")
    outcome = nursery().predict(*given, ranks=2).expect(0)
    assert "model.compile=auto: not compiled, which is worth its start on a GPU only" in outcome.stdout.splitlines()
    assert json.loads((output / "runs.jsonl").read_text())["compile"] is False


def test_a_manifest_that_a_kill_prevented_is_as_full() -> None:
    output = new_folder() / "out"
    shutil.copytree(uninterrupted(), output)
    (output / "manifest.json").unlink()
    check_screen(nursery().predict(f"output_dir={output}").expect(0))
    before, now = (json.loads((root / "manifest.json").read_text()) for root in (uninterrupted(), output))
    assert {key: now[key] for key in now if key != "run"} == {key: before[key] for key in before if key != "run"}


# --- Sweeps ----------------------------------------------------------------------------------------------------------


def table_of(outcome: Outcome) -> list[str]:
    """The lines of the sweep's table, without its header."""
    text = outcome.stdout.replace("\r", "\n").splitlines()
    start = max(number for number, line in enumerate(text) if line.startswith("point"))
    return [line for line in text[start + 1 :] if line.startswith("data.")]


def test_a_sweep_goes_on_after_a_point_without_memory() -> None:
    place = new_folder()
    line = ("-m", "data.batch_size=32,100000000", "data.limit=64", "output_dir=out")
    outcome = nursery().predict(*line, folder=place).expect(0)
    table = table_of(outcome)
    assert len(table) == 2 and table[0].endswith("done") and table[1].endswith("out of memory"), outcome.stdout
    assert "Traceback" not in outcome.stderr
    check_layout(place / "out/data.batch_size=32", rows=64)
    assert "best:     data.batch_size=32, " in outcome.stdout and " embed data.batch_size=32 " in outcome.stdout
    assert "32: " in (plot := (place / "out/sweep.svg").read_text()) and "100000000: out of memory" in plot
    assert everything(place)[0] == "out" and not [
        name for name in everything(place) if name.endswith(("multirun", ".hydra"))
    ]


def test_a_sweep_over_two_devices() -> None:
    place = new_folder()
    line = ("-m", "data.batch_size=16,32", "data.limit=64", "trainer.devices=2", "output_dir=out")
    outcome = nursery().predict(*line, folder=place).expect(0)
    assert [row.split()[-1] for row in table_of(outcome)] == ["done", "done"], outcome.stdout
    for size in (16, 32):
        check_layout(place / f"out/data.batch_size={size}", rows=64)
    check_screen(outcome)


def test_nothing_is_left_beside_the_outputs() -> None:
    assert not [
        name for name in everything(session_folder()) if name.endswith((".hydra", "multirun", "outputs", ".log"))
    ]
    assert not (PROJECT / "outputs").exists() or not (PROJECT / ".hydra").exists()
