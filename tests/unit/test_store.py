"""The output directory: what a reader sees at every moment, and what is left after a crash at any step."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.children import in_child
from helpers.jobs import check_layout, everything, identities, new_folder, snapshot
from lora_clip.errors import OutputError, StorageError
from lora_clip.output import provenance
from lora_clip.output.housekeeping import assemble_finished, recover
from lora_clip.output.layout import FORMAT
from lora_clip.output.ledger import CommittedRange, Ledger, by_shard, covers
from lora_clip.output.manifest import write_manifest
from lora_clip.output.session import OutputSession
from lora_clip.output.store import Store
from lora_clip.output.tables import ROWS_PER_GROUP
from lora_clip.output.verify import Verdict, verify
from lora_clip.types import ImageRow, Reject, WorkRange

WIDTH = 6


def embedding(shard: int, position: int, dtype: str = "float16") -> np.ndarray:
    """The unit vector that stands for an image."""
    vector = np.random.default_rng((shard, position)).normal(size=WIDTH)
    return (vector / np.linalg.norm(vector)).astype(dtype)


def is_bad(position: int) -> bool:
    return position % 5 == 3


def content(work: WorkRange) -> tuple[np.ndarray, list[ImageRow], list[Reject]]:
    """What a work becomes: every fifth image is rejected."""
    good = [position for position in range(work.start, work.stop) if not is_bad(position)]
    vectors = [embedding(work.shard, position) for position in good]
    rows = [
        ImageRow(f"{work.shard}.tar/{position}.jpg", f"{position}", work.shard, position, 4, 3, None, "u", "{}")
        for position in good
    ]
    rejects = [
        Reject(work.shard, position, f"{position}", "decode", "not an image")
        for position in range(work.start, work.stop)
        if is_bad(position)
    ]
    return np.array(vectors, dtype=np.float16).reshape(-1, WIDTH), rows, rejects


def write(store: Store, work: WorkRange, final: bool = False, rank: int = 0) -> CommittedRange:
    embeddings_ND, rows, rejects = content(work)
    return store.write(rank, work, final, embeddings_ND, rows, rejects, texts_ND=-embeddings_ND)


@pytest.fixture
def store() -> Store:
    return Store(new_folder())


def whole(*sizes: int) -> dict[str, str]:
    """The files of shards of so many images, each written in one committed."""
    store = Store(new_folder())
    for shard, size in enumerate(sizes):
        if size:
            write(store, WorkRange(shard, 0, size), final=True)
    return snapshot(store.root)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60).flatmap(lambda size: st.tuples(st.just(size), st.sets(st.integers(1, max(1, size - 1))))))
def test_any_division_gives_the_same_bytes(drawn: tuple[int, set[int]]) -> None:
    size, cuts = drawn
    bounds = [0, *sorted(cut for cut in cuts if cut < size), size]
    parts = [WorkRange(0, start, stop) for start, stop in pairwise(bounds)]
    store = Store(new_folder())
    for rank, work in enumerate(random.Random(size).sample(parts, len(parts))):
        write(store, work, rank=rank % 3)
    assert snapshot(store.root) == {}, "a shard in ranges is nothing that a reader may see"
    assert covers(store.snapshot().committed[0], size)
    assemble_finished(store, {0: size})
    assert snapshot(store.root) == whole(size)
    check_layout(store.root, rows=sum(not is_bad(one) for one in range(size)), rejects=sum(map(is_bad, range(size))))


def test_metadata_of_many_groups_has_the_same_bytes() -> None:
    size = 2 * ROWS_PER_GROUP + 100
    store = Store(new_folder())
    for start in range(0, size, 3000):
        write(store, WorkRange(0, start, min(start + 3000, size)))
    assemble_finished(store, {0: size})
    assert snapshot(store.root) == whole(size)


def test_a_shard_of_rejects_alone_has_neither_npy_nor_metadata(store: Store) -> None:
    rejects = [Reject(4, position, "k", "read", "gone") for position in range(3)]
    store.write(0, WorkRange(4, 0, 3), True, np.empty((0, WIDTH), np.float16), [], rejects)
    assert set(snapshot(store.root)) == {"rejects/rejects_000004.parquet"}
    store.write(
        0,
        WorkRange(5, 0, 3),
        False,
        np.empty((0, WIDTH), np.float16),
        [],
        [Reject(5, i, "", "read", "") for i in (0, 1, 2)],
    )
    write(store, WorkRange(5, 3, 5))
    assemble_finished(store, {4: 3, 5: 5})
    assert identities(store.root) == [(4, 0), (4, 1), (4, 2), *((5, position) for position in range(5))]


def test_embeddings_are_little_endian_c_order(store: Store) -> None:
    embeddings_ND, rows, _ = content(WorkRange(0, 0, 3))
    store.write(0, WorkRange(0, 0, 3), True, np.asfortranarray(embeddings_ND).astype(">f2"), rows, [])
    written = np.load(store.path("img_emb", 0))
    assert written.dtype.str == "<f2" and written.flags.c_contiguous
    np.testing.assert_array_equal(written, embeddings_ND)


# --- A crash between any two steps ---------------------------------------------------------------------------------


class Crash(BaseException):
    """The power is cut."""


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException) -> Iterator[list[str]]:
    """Let the `at`-th step on the file system raise; the list tells the steps that were taken."""
    steps: list[str] = []

    def step(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def taken(*args: Any, **options: Any) -> Any:
            steps.append(name)
            if len(steps) > at:
                raise error
            return function(*args, **options)

        return taken

    with monkeypatch.context() as patch:
        for name in ("fsync", "rename", "replace", "unlink", "mkdir", "rmdir"):
            patch.setattr(os, name, step(name, getattr(os, name)))
        for name in ("replace", "unlink", "mkdir", "rmdir"):  # pathlib may have taken its own hold of them
            patch.setattr(Path, name, step(name, getattr(Path, name)))
        yield steps


def do_everything(store: Store) -> None:
    """What a job does to an output: continue, reopen, commit, assemble."""
    targets = {0: 12, 1: 7}
    ranges = recover(store, targets).committed
    for shard, target in targets.items():
        done = ranges.get(shard, [])
        start = 0
        for stop in (5, target):
            if not any(entry.start <= start and stop <= entry.stop for entry in done) and start < stop:
                begin = max([start, *(entry.stop for entry in done if entry.start <= start)])
                if begin < stop:
                    write(store, WorkRange(shard, begin, stop), final=(begin, stop) == (0, target))
            start = stop
    assemble_finished(store, targets)


def read_as_anyone(root: Path) -> None:
    """Every .npy that stands there is whole, and so is the .parquet beside it."""
    for npy in sorted((root / "img_emb").glob("*")):
        table = pq.read_table(root / "metadata" / npy.name.replace("img_emb", "metadata").replace("npy", "parquet"))
        names = zip(table["shard"].to_pylist(), table["position"].to_pylist(), strict=True)
        wanted_ND = np.array([embedding(shard, position) for shard, position in names])
        np.testing.assert_array_equal(np.load(npy), wanted_ND)
        np.testing.assert_array_equal(np.load(root / "text_emb" / npy.name.replace("img_emb", "text_emb")), -wanted_ND)


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(Crash(), marks=pytest.mark.slow),
        pytest.param(OSError(28, "No space left on device"), marks=pytest.mark.slow),
    ],
    ids=["power cut", "full disk"],
)
def test_a_crash_at_any_step_is_harmless(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    wanted = whole(12, 7)
    for at in range(1000):
        store = Store(new_folder())
        write(store, WorkRange(1, 0, 5), final=True)  # of a run with a lower limit
        with failing(monkeypatch, at, error) as steps:
            try:
                do_everything(store)
            except (Crash, StorageError, OSError) as raised:
                assert isinstance(raised, Crash | StorageError), f"step {at}, {steps[-1]}: {raised!r}"
        read_as_anyone(store.root)
        finished = len(steps) <= at
        do_everything(store)
        assert snapshot(store.root) == wanted, f"after a crash at step {at}, {steps[at : at + 1]}"
        assert not [name for name in everything(store.root) if name.startswith("parts") or "tmp" in name]
        if finished:
            break
    assert 30 < at < 999


def test_a_full_disk_is_one_message_and_no_partial_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"No space left on device.*same command again"):
        write(store, WorkRange(0, 0, 9), final=True)
    assert [path for path in store.root.rglob("*") if path.is_file()] == []


def test_a_torn_line_is_no_line(store: Store) -> None:
    write(store, WorkRange(0, 0, 5), final=True)
    write(store, WorkRange(1, 0, 5), final=True)
    ledger = store.root / "ranks/rank_00000.jsonl"
    whole_ledger = ledger.read_bytes()
    for length in range(whole_ledger.index(b"\n") + 1, len(whole_ledger) - 1):
        ledger.write_bytes(whole_ledger[:length])
        assert list(store.snapshot().committed) == [0]
    recover(store, {0: 5, 1: 5})
    assert set(snapshot(store.root)) == set(whole(5))
    write(store, WorkRange(1, 0, 5), final=True)
    assert snapshot(store.root) == whole(5, 5)
    assert list(store.snapshot().committed) == [0, 1]


def test_what_was_taken_back_into_parts_is_put_out_again_when_no_more_is_wanted(store: Store) -> None:
    """A raised limit, an interruption, and the old limit again."""
    write(store, WorkRange(0, 0, 7), final=True)
    recover(store, {0: 12})
    assert snapshot(store.root) == {} and store.snapshot().finished == {}
    assert verify(store.root, {0: 7}).problems == ["shard 0: 7 of 7 images are committed, the shard is not finished"]
    recover(store, {0: 7})
    assemble_finished(store, {0: 7})
    assert snapshot(store.root) == whole(7)
    assert verify(store.root, {0: 7}).problems == []


def test_orphans_are_deleted_and_files_of_others_kept(store: Store) -> None:
    write(store, WorkRange(0, 0, 5), final=True)
    write(store, WorkRange(1, 0, 5))
    before = everything(store.root)
    for name in (
        "img_emb/img_emb_000009.npy", "metadata/metadata_000009.parquet", "rejects/rejects_000009.parquet",
        "parts/img_emb_000001.npy.77.tmp", "parts/img_emb_000001_000000005-000000007.npy", ".manifest.json.9.tmp",
    ):  # fmt: skip
        (store.root / name).parent.mkdir(exist_ok=True)
        (store.root / name).write_bytes(b"")
    (store.root / "img_emb/my_notes.txt").write_text("mine")
    recover(store, {0: 5, 1: 9})
    assert everything(store.root) == sorted([*before, "img_emb/my_notes.txt"])


def test_a_manifest_that_no_longer_holds_is_deleted(store: Store) -> None:
    write(store, WorkRange(0, 0, 5), final=True)
    (store.root / "manifest.json").write_text("{}")
    recover(store, {0: 5})
    assert (store.root / "manifest.json").exists()
    recover(store, {0: 6})
    assert not (store.root / "manifest.json").exists()


def test_what_was_written_last_counts(store: Store) -> None:
    """A shard that was made anew, after its files were deleted by hand, is not judged by its first line."""
    write(store, WorkRange(0, 0, 7), final=True)
    for kind in ("img_emb", "text_emb", "metadata", "rejects"):
        store.path(kind, 0).unlink()
    assert store.snapshot().committed == {}
    second = write(store, WorkRange(0, 0, 5), final=True)
    assert store.snapshot().committed == {0: [second]}


# --- The ledger ----------------------------------------------------------------------------------------------------


def committed(shard: int, start: int, stop: int, final: bool = False) -> CommittedRange:
    return CommittedRange(shard, start, stop, stop - start, 0, {}, final)


def test_pieces_that_overlap_count_once() -> None:
    found = by_shard([committed(0, 4, 8), committed(0, 0, 4), committed(0, 0, 8, True), committed(2, 3, 5)])
    assert [(one.start, one.stop) for one in found[0]] == [(0, 8)]
    assert not covers(found[2], 5) and covers(found[0], 8) and not covers(found[0], 9)


def test_ranks_append_to_their_own_file(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ranks")
    for rank in (0, 3, 0):
        ledger.append(rank, committed(rank, 0, 1))
    assert {path.name: len(path.read_text().splitlines()) for path in ledger.folder.iterdir()} == {
        "rank_00000.jsonl": 2,
        "rank_00003.jsonl": 1,
    }
    for line in (ledger.folder / "rank_00000.jsonl").read_text().splitlines():
        assert {"shard", "rows", "rejects", "checksums", "seconds", "finished"} <= json.loads(line).keys()


def test_a_line_is_parsed_once_and_a_growing_one_when_it_is_whole(tmp_path: Path) -> None:
    ledger, other = Ledger(tmp_path), Ledger(tmp_path)
    ledger.append(0, committed(0, 0, 1))
    first = ledger.ranges()
    assert len(first) == 1 and ledger.ranges()[0] is first[0]
    other.append(1, committed(1, 0, 1))
    line = (tmp_path / "rank_00001.jsonl").read_bytes()
    with (tmp_path / "rank_00000.jsonl").open("ab") as file:
        file.write(line[:20])
    assert [entry.shard for entry in ledger.ranges()] == [0, 1]
    with (tmp_path / "rank_00000.jsonl").open("ab") as file:
        file.write(line[20:])
    assert [entry.shard for entry in ledger.ranges()] == [0, 1, 1]
    assert ledger.ranges()[0] is first[0]
    (tmp_path / "rank_00000.jsonl").write_bytes(line)
    assert [entry.shard for entry in ledger.ranges()] == [1, 1]


def test_a_line_without_sizes_is_a_line(tmp_path: Path) -> None:
    """As format 1 wrote them."""
    old = vars(committed(3, 0, 5)) | {"seconds": 1.5, "finished": "2026-01-01T00:00:00+00:00"}
    del old["sizes"]
    (tmp_path / "rank_00000.jsonl").write_text(json.dumps(old) + "\n")
    [entry] = Ledger(tmp_path).ranges()
    assert (entry.shard, entry.stop, entry.seconds, entry.sizes) == (3, 5, 1.5, {})


# --- The directory as one job holds it -----------------------------------------------------------------------------


def enter(root: Path) -> None:
    with OutputSession(root, resume=True) as session:
        session.begin({"a": 1}, [])


def begin_late(session: OutputSession) -> None:
    """Go on with a OutputSession that was entered before the other job made the directory."""
    try:
        session.begin({"a": 2}, [])
    except OutputError as error:
        session.__exit__(OutputError, error, None)
        raise


def test_the_second_of_two_jobs_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    root = tmp_path / "deep/output"
    first = OutputSession(root, resume=True)
    second = OutputSession(root, resume=True)
    second.__enter__()  # finds nothing yet
    with first:
        first.begin({"a": 1}, [])
        assert in_child(lambda: enter(root)) == 7
        assert in_child(lambda: begin_late(second)) == 7
        assert provenance.read_fingerprint(root) == {"a": 1}
    assert in_child(lambda: enter(root)) == 0


def test_what_another_job_did_since_the_look_is_not_discarded(tmp_path: Path) -> None:
    late = OutputSession(tmp_path / "o", resume=True)
    with late:
        with OutputSession(tmp_path / "o", resume=True) as session:
            session.begin({"a": 1}, [])
            write(session.store, WorkRange(0, 0, 4), final=True)
        with pytest.raises(OutputError, match="same command again"):
            late.begin({"a": 2}, [])
        assert snapshot(tmp_path / "o") == whole(4)


@pytest.mark.parametrize("there", [False, True])
def test_a_job_that_fails_before_its_first_commit_leaves_nothing(there: bool, tmp_path: Path) -> None:
    root = tmp_path / "deep/output"
    if there:
        root.mkdir(parents=True)
        (root / "mine.txt").write_text("keep")
    before = everything(tmp_path)
    with pytest.raises(KeyError), OutputSession(root, resume=True) as session:
        session.begin({"a": 1}, [{"id": 0}])
        raise KeyError
    assert everything(tmp_path) == before


def test_a_job_that_fails_later_leaves_what_is_committed(tmp_path: Path) -> None:
    with pytest.raises(KeyError), OutputSession(tmp_path / "o", resume=True) as session:
        session.begin({"a": 1}, [])
        write(session.store, WorkRange(0, 0, 4), final=True)
        raise KeyError
    assert snapshot(tmp_path / "o") == whole(4)
    with (
        OutputSession(tmp_path / "o", resume=True) as session,
        pytest.raises(OutputError, match="a: 1 there, 2 wanted"),
    ):
        session.check({"a": 2})


def test_an_output_without_commits_binds_nobody(tmp_path: Path) -> None:
    session = OutputSession(tmp_path / "o", resume=True)
    session.__enter__()
    session.begin({"a": 1}, [{"id": 0}])  # and killed
    assert session._lock is not None
    session._lock.release()
    with OutputSession(tmp_path / "o", resume=True) as session:
        session.check({"a": 2})
        assert not [*session.known_inputs()]


def perform(root: Path, targets: dict[int, int], killed: bool = False) -> Verdict:
    """A job over shards of so many images; a killed one ends before it looks at what it wrote."""
    with OutputSession(root, resume=True) as session:
        session.check({"a": 1})
        session.begin({"a": 1}, session.known_inputs())
        done = session.recover(targets).prefixes()
        missing = [WorkRange(shard, 0, target) for shard, target in targets.items() if not done.get(shard)]
        for work in missing:
            write(session.store, work, final=True)
        if killed:
            return Verdict()
        verdict = session.conclude(targets, embedded=bool(missing))
        write_manifest(root, {"format": FORMAT})
        return verdict


def test_a_run_with_nothing_missing_reads_no_embedding_and_no_line_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, parsed, real = tmp_path / "o", Counter[int](), json.loads

    def loads(text: str | bytes) -> Any:
        found = real(text)
        parsed.update([found["shard"]] if "checksums" in found else [])
        return found

    assert perform(root, {0: 4, 1: 5}).sound
    damage(root, 0)
    monkeypatch.setattr(json, "loads", loads)
    assert perform(root, {0: 4, 1: 5}).sound, "what an earlier run has proven is not read again"
    assert parsed == {0: 1, 1: 1}
    assert not verify(root, {0: 4, 1: 5}).sound, "the proof reads everything"


def test_of_a_large_output_a_run_reads_a_sample_again_and_all_when_it_is_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_clip.output.verify.SAMPLE_BYTES", 1)
    targets = {0: 4, 1: 5, 2: 3}
    perform(tmp_path / "o", targets, killed=True)
    for shard in targets:
        damage(tmp_path / "o", shard)
    with OutputSession(tmp_path / "o", resume=True) as session:
        found = session.conclude(targets, embedded=True)
        assert (found.read, found.shards, len(found.problems)) == (1, 3, 1)
        found = session.conclude(targets, embedded=True, full=True)
        assert (found.read, found.shards, len(found.problems)) == (3, 3, 3)
        (tmp_path / "o" / "metadata" / "metadata_000001.parquet").unlink()
        assert "is gone" in "\n".join(session.conclude(targets, embedded=True).problems)


def test_a_run_reads_what_no_run_has_proven(tmp_path: Path) -> None:
    perform(tmp_path / "o", {0: 4, 1: 5}, killed=True)
    damage(tmp_path / "o", 1)
    assert "shard 1: img_emb changed" in perform(tmp_path / "o", {0: 4, 1: 5}).problems[0]


def test_what_was_committed_after_the_proof_is_read_at_the_end_of_the_next_run(tmp_path: Path) -> None:
    assert perform(tmp_path / "o", {0: 4}).sound
    perform(tmp_path / "o", {0: 4, 1: 5}, killed=True)
    damage(tmp_path / "o", 1)
    assert "shard 1: img_emb changed" in perform(tmp_path / "o", {0: 4, 1: 5, 2: 3}).problems[0]


def damage(root: Path, shard: int) -> None:
    """Change a byte of a shard's embeddings."""
    path = Store(root).path("img_emb", shard)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
