"""The contract on disk at component level: batches in any order, commits cut off at any step, and the proof of it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_plan import inventory

from helpers.jobs import check_layout, snapshot
from lora_clip.app.job import assemble
from lora_clip.errors import OutputError, StorageError, TooManyRejectsError
from lora_clip.io.lock import FolderLock
from lora_clip.loading.plan import Plan, make_plan
from lora_clip.output import provenance
from lora_clip.output.store import Store
from lora_clip.output.verify import verify
from lora_clip.output.writer import RangeCommitter
from lora_clip.types import EmbeddedBatch, ImageRow, Reject, WorkRange

WIDTH = 8


def is_reject(shard: int, position: int) -> bool:
    return (7 * shard + 3 * position) % 11 == 0


def embedding(shard: int, position: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * shard + position)
    return torch.nn.functional.normalize(torch.randn(WIDTH, generator=generator), dim=0).half()


def batches(work: WorkRange, batch_size: int) -> list[EmbeddedBatch]:
    """What the model would hand on for a work."""
    made = []
    for start in range(work.start, work.stop, batch_size):
        stop = min(start + batch_size, work.stop)
        kept = [position for position in range(start, stop) if not is_reject(work.shard, position)]
        rows = [ImageRow(f"s/{p}.jpg", str(p), work.shard, p, 4, 3, None, None, None) for p in kept]
        rejects = [Reject(work.shard, p, str(p), "decode", "bad") for p in range(start, stop) if p not in kept]
        embeddings_BD = torch.zeros(batch_size, WIDTH, dtype=torch.float16)
        for slot, position in enumerate(kept):
            embeddings_BD[slot] = embedding(work.shard, position)
        made.append(EmbeddedBatch(embeddings_BD, rows, rejects, work, stop == work.stop))
    return made


def embed(root: Path, plan: Plan, batch_size: int, stop_after: int | None = None) -> None:
    """Every rank's writer at work, the workers of a rank taking turns; cut off after some batches."""
    root.mkdir(exist_ok=True)
    fed = 0
    for rank, workers in enumerate(plan.shares):
        committer = RangeCommitter(Store(root), rank, plan.targets, plan.local, float("inf"))
        queues = [[batch for work in parts for batch in batches(work, batch_size)] for parts in workers]
        while any(queues):
            for waiting in queues:
                if waiting:
                    committer.add(waiting.pop(0))
                    fed += 1
                    if fed == stop_after:
                        return


def whole(root: Path, sizes: Sequence[int], batch_size: int) -> dict[str, str]:
    """The output that one rank with one worker makes in one go."""
    stock = inventory(*sizes)
    embed(root, make_plan(stock, {}, ranks=1, workers=1, batch_size=batch_size), batch_size)
    assemble(Store(root), stock.targets)
    return snapshot(root)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(any),
    batch_size=st.integers(1, 9),
    runs=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 30)), max_size=3),
    last=st.tuples(st.integers(1, 3), st.integers(0, 4)),
)
def test_any_division_and_any_interruptions_give_the_same_bytes(
    sizes: list[int], batch_size: int, runs: list[tuple[int, int, int]], last: tuple[int, int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        wanted = whole(Path(folder, "whole"), sizes, batch_size)
        stock, root = inventory(*sizes), Path(folder, "cut")
        root.mkdir()
        for ranks, workers, stop_after in (*runs, (*last, None)):
            done = {
                id_: [(p.start, p.stop) for p in found] for id_, found in Store(root).recover(stock.targets).items()
            }
            plan = make_plan(stock, done, ranks=ranks, workers=workers, batch_size=batch_size)
            embed(root, plan, batch_size, stop_after)
        assemble(Store(root), stock.targets)
        verdict = verify(root, stock.targets)
        assert verdict.problems == []
        assert verdict.rows + verdict.rejects == verdict.images == sum(sizes)
        assert snapshot(root) == wanted


class Crash(BaseException):
    """The power is cut."""


@pytest.mark.parametrize("step", ["fsync", "replace", "unlink"])
def test_a_crash_at_any_step_loses_nothing(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, stock = (20, 9), inventory(20, 9)
    wanted = whole(tmp_path / "whole", sizes, 4)
    owner = os if step == "fsync" else Path
    real: Callable[..., object] = getattr(owner, step)
    for crash_at in range(1, 60):
        root, calls = tmp_path / f"{step}{crash_at}", 0
        root.mkdir()

        def falter(*arguments: object, at: int = crash_at, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls == at:
                raise Crash
            return real(*arguments, **options)

        monkeypatch.setattr(owner, step, falter)
        try:
            embed(root, make_plan(stock, {}, ranks=1, workers=2, batch_size=4), 4)
        except Crash:
            pass
        else:
            monkeypatch.setattr(owner, step, real)
            assert crash_at > 3, "the step was never reached"
            return
        monkeypatch.setattr(owner, step, real)
        done = {
            id_: [(p.start, p.stop) for p in found] for id_, found in Store(root).recover(dict(stock.targets)).items()
        }
        embed(root, make_plan(stock, done, ranks=2, workers=1, batch_size=4), 4)
        assemble(Store(root), stock.targets)
        assert verify(root, stock.targets).problems == []
        assert snapshot(root) == wanted, crash_at


def test_the_layout_is_the_readers(tmp_path: Path) -> None:
    whole(tmp_path / "out", (20, 0, 1, 9), 4)  # the only image of shard 2 is row or reject, shard 1 has none
    rejects = sum(is_reject(shard, p) for shard, size in enumerate((20, 0, 1, 9)) for p in range(size))
    check_layout(tmp_path / "out", 30 - rejects, rejects)


def test_a_shard_of_rejects_alone_has_no_embeddings(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(0, WorkRange(0, 0, 1), True, np.empty((0, WIDTH), np.float16), [], [Reject(0, 0, "k", "read", "gone")])
    assert not (tmp_path / "img_emb").exists() and not (tmp_path / "metadata").exists()
    assert pq.read_table(store.path("rejects", 0)).to_pylist()[0]["error"] == "gone"
    assert verify(tmp_path, {0: 1}).problems == []


def test_a_vector_that_is_no_unit_vector_is_a_reject(tmp_path: Path) -> None:
    work = WorkRange(1, 1, 5)
    (batch,) = batches(work, 4)
    batch.embeddings_BD[1] = float("nan")
    RangeCommitter(Store(tmp_path), 0, {1: 5}, frozenset(), 9).add(batch)
    (entry,) = Store(tmp_path).committed()[1]
    assert (entry.rows, entry.rejects) == (len(batch.rows) - 1, len(batch.rejects) + 1)


def test_too_many_rejects_end_the_run(tmp_path: Path) -> None:
    batch = EmbeddedBatch(
        torch.zeros(2, WIDTH).half(), [], [Reject(0, p, "", "decode", "") for p in (0, 1)], WorkRange(0, 0, 2), True
    )
    with pytest.raises(TooManyRejectsError, match="max_reject_fraction"):
        RangeCommitter(Store(tmp_path), 0, {0: 2}, frozenset({0}), 1.5).add(batch)
    RangeCommitter(Store(tmp_path), 0, {0: 2}, frozenset({0}), 2).add(batch)


def test_a_full_disk_is_one_message_and_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No session left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"No session left on device.*same command again"):
        embed(tmp_path, make_plan(inventory(9), {}, ranks=1, workers=1, batch_size=4), 4)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_torn_line_is_no_line_and_the_next_is_whole(tmp_path: Path) -> None:
    wanted = whole(tmp_path, (9, 9), 4)
    path = tmp_path / "ranks" / "rank_00000.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    stock, store = inventory(9, 9), Store(tmp_path)
    done = {id_: [(p.start, p.stop) for p in found] for id_, found in store.recover(dict(stock.targets)).items()}
    assert done == {0: [(0, 9)]}
    assert not store.path("img_emb", 1).exists()
    embed(tmp_path, make_plan(stock, done, ranks=1, workers=1, batch_size=4), 4)
    assert snapshot(tmp_path) == wanted
    assert verify(tmp_path, stock.targets).problems == []


def test_a_raised_limit_goes_on_from_what_is_there(tmp_path: Path) -> None:
    wanted = whole(tmp_path / "whole", (20,), 4)
    work, all_of_it = inventory(8), inventory(20)
    root = tmp_path / "out"
    embed(root, make_plan(work, {}, ranks=1, workers=1, batch_size=4), 4)
    assert verify(root, work.targets).problems == []
    done = {
        id_: [(p.start, p.stop) for p in found] for id_, found in Store(root).recover(dict(all_of_it.targets)).items()
    }
    plan = make_plan(all_of_it, done, ranks=1, workers=1, batch_size=4)
    assert plan.images == 12
    embed(root, plan, 4)
    assert snapshot(root) == wanted


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _fewer_rows(path: Path) -> None:
    np.save(path, np.load(path)[:-1])


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped byte": (lambda root: _flip(root / "img_emb/img_emb_000000.npy"), "img_emb changed"),
    "other metadata": (lambda root: _flip(root / "metadata/metadata_000001.parquet"), "metadata changed"),
    "a lost file": (lambda root: (root / "img_emb/img_emb_000001.npy").unlink(), "0 of 9 images are committed"),
    "a file of others": (lambda root: (root / "img_emb/img_emb_000009.npy").touch(), "not accounted for"),
    "a lost row": (lambda root: _fewer_rows(root / "img_emb/img_emb_000000.npy"), "img_emb changed"),
    "a lost ledger": (lambda root: shutil.rmtree(root / "ranks"), "0 of 20 images are committed"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found(damage: str, tmp_path: Path) -> None:
    whole(tmp_path, (20, 9), 4)
    harm, message = DAMAGES[damage]
    harm(tmp_path)
    problems = verify(tmp_path, {0: 20, 1: 9}).problems
    assert any(message in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("rows", "values", "message"),
    [
        ((0, 1, 1), 1.0, "1 images twice, 1 neither"),
        ((0, 1), 1.0, "0 images twice, 1 neither"),
        ((0, 2, 1), 1.0, "not in the order"),
        ((0, 1, 2), float("nan"), "3 embeddings are not"),
        ((0, 1, 2), 0.99, "3 embeddings are not"),
    ],
)
def test_what_a_wrong_writer_would_leave_is_found(
    rows: tuple[int, ...], values: float, message: str, tmp_path: Path
) -> None:
    embeddings_ND = np.zeros((len(rows), WIDTH), np.float16)
    embeddings_ND[:, 0] = values
    described = [ImageRow("", "", 0, position, 1, 1, None, None, None) for position in rows]
    Store(tmp_path).write(0, WorkRange(0, 0, 3), True, embeddings_ND, described, [])
    assert any(message in problem for problem in verify(tmp_path, {0: 3}).problems)


def test_a_fingerprint_that_differs_is_refused_by_name(tmp_path: Path) -> None:
    provenance.write_fingerprint(tmp_path, {"adapter": {"weights": "a"}, "model_dtype": "float32"})
    provenance.check_fingerprint(tmp_path, {"adapter": {"weights": "a"}, "model_dtype": "float32"})
    with pytest.raises(OutputError, match=r"adapter.weights: a there, b wanted"):
        provenance.check_fingerprint(tmp_path, {"adapter": {"weights": "b"}, "model_dtype": "float32"})


def test_the_lock_is_free_again_when_its_process_has_died(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        FolderLock(tmp_path).claim()
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    lock = FolderLock(tmp_path)
    lock.claim()
    lock.release()
