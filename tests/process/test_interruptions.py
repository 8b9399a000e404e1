"""Interruptions of whole jobs: whatever ends them, the same command finishes the work, and nothing is done twice."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from helpers.images import jpeg
from helpers.jobs import (
    Gate,
    Job,
    check_layout,
    committed,
    everything,
    identities,
    new_folder,
    nursery,
    snapshot,
    start,
    uninterrupted,
    wait_for,
    write_shard,
)

IMAGES = 400
SMALL_BATCHES = ("data.batch_size=8", "data.num_workers=1")
"""Many commits and a job that is slow enough to be caught in the act."""
SIGNALS = [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
SLOW = ("data.batch_size=4", "data.num_workers=1", "model.dtype=bfloat16")


def look(output: Path) -> int:
    """Read the output as a reader would who does not know that a job is at it; how many rows are there."""
    rows = 0
    for npy in sorted((output / "img_emb").glob("*.npy")):
        embeddings_ND = np.load(npy, allow_pickle=False)
        table = pq.read_table(output / "metadata" / npy.name.replace("img_emb", "metadata").replace(".npy", ".parquet"))
        assert len(table) == len(embeddings_ND) > 0
        assert np.abs(np.linalg.norm(embeddings_ND.astype(np.float32), axis=1) - 1).max() < 2e-3
        rows += len(table)
    return rows


def lines(output: Path) -> int:
    """How many commits the ledger tells of."""
    return sum(path.read_bytes().count(b"\n") for path in (output / "ranks").glob("*.jsonl"))


def wait_for_lines(output: Path, count: int) -> None:
    """Wait until so many commits are made."""
    assert wait_for(lambda: lines(output) >= count, pause=0.002)


LET_THROUGH = {1: 160, 2: 110, 3: 60}
"""Images of each worker, by the number of ranks: enough for three commits, and not all."""


@pytest.mark.parametrize("seed", range(3))
def test_kill_of_all_then_another_number_of_ranks(seed: int) -> None:
    chance = random.Random(seed)
    output = new_folder() / "output"
    wanted = uninterrupted(*SMALL_BATCHES)
    before: list[str] = []
    for ranks in (chance.choice([1, 2, 3]), chance.choice([1, 2, 3])):
        gate = Gate(LET_THROUGH[ranks])
        job = nursery().start(f"output_dir={output}", *SMALL_BATCHES, Gate.TYPED, ranks=ranks, **gate.options)
        after = len(before) + chance.randint(1, 3)
        wait_for_lines(output, after)
        time.sleep(chance.random() * 0.05)
        look(output)
        job.kill()
        look(output)
        earlier, before = before, ledger_text(output)
        assert set(earlier) <= set(before)
    ranks = chance.choice([1, 2, 3])
    typed = (f"output_dir={output}", *SMALL_BATCHES, Gate.TYPED)
    nursery().predict(*typed, ranks=ranks, **gate.open().options).expect(0)
    assert snapshot(output) == snapshot(wanted)
    assert len(committed(output)) == len(set(committed(output))) == IMAGES
    assert set(before) <= set(ledger_text(output))
    check_layout(output, rows=IMAGES)
    assert {name for name in everything(output) if "rank_" not in name} == {
        name for name in everything(wanted) if "rank_" not in name
    }


def ledger_text(output: Path) -> list[str]:
    """The whole lines of the ledger."""
    return [
        line
        for path in sorted((output / "ranks").glob("*"))
        for line in path.read_text().splitlines(keepends=True)
        if line.endswith("}\n")
    ]


@pytest.fixture
def two_ranks(launcher: str) -> Iterator[tuple[Job, Path]]:
    """A job of two ranks under a real launcher, caught at work."""
    output, gate = new_folder() / "output", Gate(150)
    job = start(f"output_dir={output}", *SLOW, Gate.TYPED, ranks=2, launcher=launcher, **gate.options)
    try:
        assert wait_for(lambda: lines(output) >= 1 and len(job.ranks()) == 2), job.stderr
        yield job, output
    finally:
        job.kill()


def check_the_rest(output: Path) -> None:
    """Assert that a job of one rank makes of it what one makes alone."""
    nursery().predict(f"output_dir={output}", *SLOW, Gate.TYPED, **Gate().open().options).expect(0)
    assert snapshot(output) == snapshot(uninterrupted(*SLOW))


# Under Lightning's launcher rank 0 is the parent of the others; to torchrun all ranks are alike
@pytest.mark.parametrize(("launcher", "rank"), [("python", 0), ("python", 1), ("torchrun", 0)])
def test_kill_of_one_rank_ends_all(rank: int, two_ranks: tuple[Job, Path]) -> None:
    job, output = two_ranks
    job.ranks()[rank].kill()
    outcome = job.wait()
    assert outcome.status != 0
    assert job.gone(), job.members()
    look(output)
    check_the_rest(output)


@pytest.mark.parametrize(
    ("launcher", "number", "status", "word"),
    [("python", *SIGNALS[0]), ("python", *SIGNALS[1]), ("torchrun", *SIGNALS[0])],
)
def test_a_signal_to_all_is_one_line(
    launcher: str, number: int, status: int, word: str, two_ranks: tuple[Job, Path]
) -> None:
    job, output = two_ranks
    under_torchrun = launcher == "torchrun"
    if under_torchrun:
        os.kill(job.pid, number)  # its ranks are in sessions of their own; it hands the signal on
    else:
        job.signal_all(number)
    outcome = job.wait()
    assert job.gone(), job.members()
    look(output)
    assert outcome.stderr.count(f"{word}: what is committed is safe") == 1, outcome.stderr
    assert "[rank0]: Traceback" not in outcome.stderr, outcome.stderr
    if not under_torchrun:  # torchrun adds its own report, and has its own status
        assert outcome.status == status, outcome.stderr
        assert "Traceback" not in outcome.stderr, outcome.stderr
    check_the_rest(output)


@pytest.mark.parametrize(("number", "status", "word"), SIGNALS)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_to_one_process_is_one_line(number: int, status: int, word: str, workers: int) -> None:
    output = new_folder() / "output"
    typed = (f"output_dir={output}", "data.batch_size=4", f"data.num_workers={workers}", Gate.TYPED)
    job = nursery().start(*typed, **Gate(150).options)
    assert wait_for(lambda: lines(output) >= 1, pause=0.002), job.stderr
    os.kill(job.pid, number)
    outcome = job.wait()
    assert job.gone(), job.members()
    assert outcome.status == status, outcome.stderr
    report = [
        line for line in outcome.stderr.replace("\r", "\n").splitlines() if line.strip() and "images/s" not in line
    ]
    assert len(report) == 1 and report[0].startswith(f"{word}: "), outcome.stderr
    look(output)


def test_a_signal_in_the_middle_of_a_destructor_is_not_lost() -> None:
    script = Path(__file__).parents[1] / "helpers/fragile.py"
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert ended.returncode == 143 and ended.stdout == "" and ended.stderr.count("\n") == 1, ended


def test_a_signal_before_the_first_commit_leaves_nothing() -> None:
    """A range is committed when it is whole, and this one never is."""
    place = new_folder()
    write_shard(place / "in.tar", 30)
    line = ("data=shards", f"data.shards={place / 'in.tar'}", "data.batch_size=2", "data.num_workers=0", Gate.TYPED)
    job = nursery().start(*line, f"output_dir={place / 'out'}", **Gate(20).options)
    assert wait_for(lambda: (place / "out/inputs.jsonl").exists(), pause=0.001), job.stderr
    os.kill(job.pid, signal.SIGTERM)
    assert job.wait().status == 143
    assert everything(place) == ["in.tar"]


def test_a_file_size_limit_is_one_message_and_harmless() -> None:
    output = new_folder() / "output"
    tight = start(
        f"output_dir={output}", "data.num_workers=0", "data.batch_size=50",
        preexec=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8300, 8300)),
    )  # fmt: skip
    outcome = tight.wait().expect(2)
    assert "Traceback" not in outcome.stderr
    assert outcome.stderr.count("cannot write") == 1 and "File too large" in outcome.stderr, outcome.stderr
    look(output)
    nursery().predict(f"output_dir={output}", "data.num_workers=0", "data.batch_size=50").expect(0)
    assert snapshot(output) == snapshot(uninterrupted("data.num_workers=0", "data.batch_size=50"))


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 150 KB."""
    folder = new_folder()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=150k", "none", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("mounting a small file system takes root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_full_disk_is_one_message_and_harmless(small_disk: Path, ranks: int) -> None:
    output = small_disk / "output"
    outcome = nursery().predict(f"output_dir={output}", *SMALL_BATCHES, ranks=ranks).expect(2)
    assert "Traceback" not in outcome.stderr
    assert 1 <= outcome.stderr.count("cannot write") <= ranks and "No space left" in outcome.stderr, outcome.stderr
    assert 0 < look(output) < IMAGES
    held = committed(output)
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    nursery().predict(f"output_dir={output}", *SMALL_BATCHES).expect(0)
    assert snapshot(output) == snapshot(uninterrupted(*SMALL_BATCHES))
    assert held and len(committed(output)) == len(set(committed(output))) == IMAGES


def test_a_disk_that_is_full_from_the_start(small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(140_000))
    outcome = nursery().predict(f"output_dir={small_disk / 'output'}").expect(2)
    assert "Traceback" not in outcome.stderr and outcome.stderr.count("cannot write") == 1, outcome.stderr
    assert everything(small_disk) == ["filler"]


def test_two_jobs_at_once() -> None:
    output, gate = new_folder() / "output", Gate(150)
    typed = (f"output_dir={output}", "data.batch_size=2", "data.num_workers=0", Gate.TYPED)
    first = nursery().start(*typed, **gate.options)
    assert wait_for(lambda: lines(output) >= 1, pause=0.002)
    second = nursery().predict(f"output_dir={output}").expect(2)
    gate.open()
    assert "another job is writing" in second.stderr and "Traceback" not in second.stderr
    first.wait().expect(0)
    check_layout(output, rows=IMAGES)


@pytest.fixture
def shards() -> Path:
    """Three tars of 20, 0 and 15 pictures, with a gap in their names for more."""
    folder = new_folder()
    write_shard(folder / "b.tar", 20, seed=1)
    write_shard(folder / "d.tar", 0)
    write_shard(folder / "f.tar", 15, seed=2)
    return folder


def data(shards: Path) -> tuple[str, ...]:
    return "data=shards", f"data.shards={shards}", "data.batch_size=8", "data.num_workers=0"


def test_a_raised_limit_embeds_what_is_new(shards: Path) -> None:
    output = new_folder() / "output"
    for limit, rows in (("5", 5), ("13", 13), ("27", 27), ("3", 27), ("null", 35), ("null", 35)):
        nursery().predict(*data(shards), f"data.limit={limit}", f"output_dir={output}").expect(0)
        check_layout(output, rows=rows)
        assert len(committed(output)) == rows
    fresh = new_folder() / "output"
    nursery().predict(*data(shards), f"output_dir={fresh}").expect(0)
    assert identities(output) == identities(fresh)
    assert same_but_for_batches(output, fresh)


def same_but_for_batches(one: Path, other: Path) -> bool:
    """Whether two outputs have the same metadata, and embeddings that differ at most by rounding."""
    assert [path.name for path in sorted((one / "img_emb").iterdir())] == [
        path.name for path in sorted((other / "img_emb").iterdir())
    ]
    for path in (one / "img_emb").iterdir():
        np.testing.assert_allclose(np.load(path), np.load(other / "img_emb" / path.name), atol=1e-3)
    metadata = {name: digest for name, digest in snapshot(one).items() if name.startswith("metadata")}
    return metadata.items() <= snapshot(other).items()


def test_a_lowered_limit_after_an_interrupted_run(shards: Path) -> None:
    output = new_folder() / "output"
    nursery().predict(*data(shards), "data.limit=10", f"output_dir={output}").expect(0)
    job = nursery().start(*data(shards), f"output_dir={output}")
    assert wait_for(lambda: (output / "parts").exists() or lines(output) > 1, pause=0.001)
    job.kill()
    nursery().predict(*data(shards), f"output_dir={output}", ranks=2).expect(0)
    check_layout(output, rows=35)


def test_new_shards_are_added(shards: Path) -> None:
    output = new_folder() / "output"
    nursery().predict(*data(shards), f"output_dir={output}").expect(0)
    before = snapshot(output)
    write_shard(shards / "a.tar", 4, seed=3)
    write_shard(shards / "g.tar", 3, seed=4)
    write_shard(shards / "d.tar", 2, seed=5)
    nursery().predict(*data(shards), f"output_dir={output}", ranks=2).expect(0)
    assert before.items() <= snapshot(output).items()
    check_layout(output, rows=20 + 15 + 4 + 3 + 2)
    paths = {
        path.name: set(pq.read_table(path)["image_path"].to_pylist())
        for path in sorted((output / "metadata").iterdir())
    }
    assert all(next(iter(names)).startswith(str(shards)) for names in paths.values())
    assert len(set().union(*paths.values())) == 44


def test_files_added_to_a_folder() -> None:
    pictures, output = new_folder(), new_folder() / "output"
    typed = (
        "data=folder",
        f"data.folder={pictures}",
        f"output_dir={output}",
        "data.batch_size=4",
        "data.num_workers=0",
    )
    for number in (3, 5):
        (pictures / f"{number}.jpg").write_bytes(jpeg(seed=number))
    nursery().predict(*typed).expect(0)
    before = snapshot(output)
    for number in (1, 4, 9):
        (pictures / f"{number}.jpg").write_bytes(jpeg(seed=number))
    nursery().predict(*typed).expect(0)
    assert before.items() <= snapshot(output).items()
    check_layout(output, rows=5)


def test_a_shard_that_changed_is_refused_until_told_what_to_do(shards: Path) -> None:
    output = new_folder() / "output"
    nursery().predict(*data(shards), f"output_dir={output}").expect(0)
    before = snapshot(output)
    write_shard(shards / "b.tar", 9, seed=8)
    outcome = nursery().predict(*data(shards), f"output_dir={output}").expect(2)
    assert "b.tar" in outcome.stderr and "resume=false" in outcome.stderr and "Traceback" not in outcome.stderr
    assert snapshot(output) == before
    nursery().predict(*data(shards), f"output_dir={output}", "resume=false").expect(0)
    check_layout(output, rows=9 + 15)
    assert len(committed(output)) == 24


def test_files_deleted_by_hand_are_made_anew(shards: Path) -> None:
    output = new_folder() / "output"
    nursery().predict(*data(shards), f"output_dir={output}").expect(0)
    before = snapshot(output)
    (output / "img_emb/img_emb_000000.npy").unlink()
    shutil.rmtree(output / "metadata")
    nursery().predict(*data(shards), f"output_dir={output}").expect(0)
    assert snapshot(output) == before


def test_another_adapter_after_resume_false(shards: Path) -> None:
    output = new_folder() / "output"
    (output).mkdir()
    (output / "mine.txt").write_text("keep")
    nursery().predict(*data(shards), f"output_dir={output}").expect(0)
    typed = ("output.dtype=float32", "resume=false", "data.limit=7")
    nursery().predict(*data(shards), f"output_dir={output}", *typed).expect(0)
    check_layout(output, rows=7)
    assert (output / "mine.txt").read_text() == "keep"
    assert np.load(output / "img_emb/img_emb_000000.npy").dtype == np.float32


def test_figures_of_a_killed_run_do_not_count_again() -> None:
    output, gate = new_folder() / "output", Gate(120)
    typed = (f"output_dir={output}", "data.batch_size=4", "data.num_workers=0", Gate.TYPED)
    job = nursery().start(*typed, ranks=3, **gate.options)
    assert wait_for(lambda: len(ledger_text(output)) >= 4, pause=0.002), job.stderr
    job.kill()
    held = len(committed(output))
    nursery().predict(*typed, **gate.open().options).expect(0)
    run = json.loads((output / "manifest.json").read_text())["run"]
    assert run["images"] == sum(run["images_by_rank"]) == IMAGES - held and len(run["images_by_rank"]) == 1
