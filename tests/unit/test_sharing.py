"""share: several jobs that write to one output do different things, and what two do all the same counts once."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.children import in_child
from helpers.commits import files_of, made_by_threads, write
from helpers.plans import not_counted, shard
from lora_clip.errors import OutputError, StorageError
from lora_clip.io import exclusive
from lora_clip.io.exclusive import create_new
from lora_clip.io.lock import FolderLock
from lora_clip.loading import claims
from lora_clip.loading.claims import ClaimingQueue
from lora_clip.loading.plan import Inventory, Plan, make_plan
from lora_clip.output import sharing
from lora_clip.output.housekeeping import recover
from lora_clip.output.ledger import covers
from lora_clip.output.session import OutputSession
from lora_clip.output.share import COUNT, RANKS, Share
from lora_clip.output.sharing import DoneByAnotherError, SharedStore, finish_all, finish_shard, take_part
from lora_clip.output.store import Store
from lora_clip.sources.base import Shard
from lora_clip.types import UNCOUNTED, WorkRange

SILENT = 1000.0
"""Seconds: nobody is given up in the time of a test unless it is made older."""


@pytest.fixture(autouse=True)
def no_naps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are in the same process: nothing changes while it sleeps."""
    monkeypatch.setattr(claims, "WAIT", 0)
    monkeypatch.setattr(sharing, "WAIT", 0)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def opened(root: Path, about: dict[str, object] | None = None) -> Share:
    share = Share(root, SILENT)
    share.begin(about or {})
    share.join()
    return share


def joined(root: Path) -> Share:
    share = Share(root, SILENT)
    share.join()
    return share


def fall_silent(share: Share) -> None:
    """Let a member be one that was not heard of for long."""
    long_ago = time.time() - 2 * SILENT
    os.utime(share.board.path / "members" / f"{share.me:09d}", (long_ago, long_ago))


# --- Made once ---------------------------------------------------------------------------------------------------


def test_of_many_threads_one_makes_the_file(tmp_path: Path) -> None:
    assert made_by_threads(lambda data: create_new(tmp_path / "file", data), 8) == {True: 1, False: 7}
    assert len(set((tmp_path / "file").read_text())) == 1
    assert names_in(tmp_path) == ["file"]


def test_without_hard_links_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(exclusive.os, "link", refuse)
    with pytest.raises(StorageError, match=r"Operation not permitted\): share=true needs hard links"):
        create_new(tmp_path / "file", b"")
    assert not names_in(tmp_path)


# --- Claims ------------------------------------------------------------------------------------------------------


def test_a_claim_is_one_members_until_it_falls_silent(tmp_path: Path) -> None:
    first = opened(tmp_path)
    second = joined(tmp_path)
    assert (first.me, second.me) == (0, RANKS)
    assert first.claim(7, "0-8") and not second.claim(7, "0-8") and not first.claim(7, "0-8")
    assert not second.take_over(7, "0-8", second.look(7))
    fall_silent(first)
    assert second.take_over(7, "0-8", second.look(7))
    first.beat()  # it was only frozen
    assert not first.take_over(7, "0-8", first.look(7))
    second.leave()
    assert first.take_over(7, "0-8", first.look(7))


def test_what_another_counts_is_waited_for_but_not_for_ever(tmp_path: Path) -> None:
    first, second = opened(tmp_path), joined(tmp_path)
    assert first.claim(3, COUNT) and not second.take_over(3, COUNT, second.look(3))
    long_ago = time.time() - 11 * SILENT
    os.utime(first.board.path / "000003" / "count.0", (long_ago, long_ago))
    assert second.take_over(3, COUNT, second.look(3))
    second.count({"id": 3, "images": 5})
    first.count({"id": 3, "images": 6})
    assert first.counted(3) == {"id": 3, "images": 5}


def test_who_comes_too_late_harms_nothing(tmp_path: Path) -> None:
    first, second = opened(tmp_path), joined(tmp_path)
    first.finish(1)
    assert not second.claim(1, "0-8")
    first.end()
    assert second.is_over and second.is_finished(2) and not second.claim(2, "0-8") and not second.look(2)
    second.beat()
    second.count({"id": 2})
    second.finish(2)
    second.leave()
    second.end()
    assert second.about is None and not names_in(tmp_path)


# --- The queue ---------------------------------------------------------------------------------------------------


class Images:
    """A catalog of made-up shards, which counts how often it is asked."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes, self.asked = sizes, Counter[int]()

    def __getitem__(self, id_: int) -> Shard:
        self.asked[id_] += 1
        return shard(id_, self.sizes[id_])

    def learn(self, found: Shard) -> None:
        assert found.images == self.sizes[found.id]

    def images(self, id_: int) -> int:
        return self.sizes[id_]


def queue_of(plan: Plan, share: Share, worker: int, catalog: Images) -> tuple[ClaimingQueue, list[WorkRange]]:
    noted: list[WorkRange] = []
    return ClaimingQueue(plan, share, worker, catalog, noted.append, noted.pop), noted  # type: ignore[arg-type]


def shared_plan(sizes: Sequence[int], unknown: set[int], batch_size: int, workers: int) -> Plan:
    shards = [not_counted(i, 999) if i in unknown else shard(i, size) for i, size in enumerate(sizes)]
    inventory = Inventory(shards, {one.id: one.images for one in shards})
    plan = make_plan(inventory, {}, ranks=1, workers=workers, batch_size=batch_size)
    return Plan(**{**vars(plan), "cell": 2 * batch_size})


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=6),
    unknown=st.sets(st.integers(0, 5)),
    batch_size=st.integers(1, 20),
    jobs=st.integers(1, 3),
    workers=st.integers(1, 3),
    turns=st.lists(st.integers(0, 8), min_size=1, max_size=12),
    dies_after=st.integers(0, 10),
)
def test_whoever_takes_what_everything_is_committed_once_in_the_same_cells(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], unknown: set[int], batch_size: int, jobs: int,
    workers: int, turns: list[int], dies_after: int,
) -> None:  # fmt: skip
    root = tmp_path_factory.mktemp("share")
    plan = shared_plan(sizes, unknown, batch_size, workers)
    shares = [opened(root), *(joined(root) for _ in range(jobs - 1))]
    catalog = Images(sizes)
    queues = [queue_of(plan, share, worker, catalog)[0] for share in shares for worker in range(workers)]
    alive, order, committed = set(range(len(queues))), cycle(turns), list[WorkRange]()
    for turn in range(10_000):
        if not alive:
            break
        at = sorted(alive)[next(order) % len(alive)]
        if turn == dies_after and jobs > 1:
            fall_silent(shares[at // workers])  # with a cell in hand, which it does not commit
            alive -= {other for other in alive if other // workers == at // workers}
            queues[at].next()
            continue
        if (work := queues[at].next()) is None:
            alive.remove(at)
            continue
        assert commit(shares[at // workers], work)
        committed.append(work)
    shutil.rmtree(root)
    expected = [cell for gap in (WorkRange(i, 0, n) for i, n in enumerate(sizes)) for cell in cells_of(gap, plan.cell)]
    assert sorted(committed) == expected


def cells_of(gap: WorkRange, size: int) -> list[WorkRange]:
    return list(claims.cells(gap, gap.stop, size))


def commit(share: Share, work: WorkRange) -> bool:
    entry = sharing.CommittedRange(*work, rows=work.stop - work.start, rejects=0, checksums={}, final=False)
    return share.commit(entry)


def test_a_worker_waits_for_what_another_job_has_in_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = shared_plan([8], set(), 8, 1)
    first, second = opened(tmp_path), joined(tmp_path)
    (theirs, _), (mine, noted) = (queue_of(plan, one, 0, Images([8])) for one in (first, second))
    assert theirs.next() == WorkRange(0, 0, 8)
    naps = iter((lambda: None, lambda: None, lambda: commit(first, WorkRange(0, 0, 8))))
    monkeypatch.setattr(claims.time, "sleep", lambda seconds: next(naps)())
    assert mine.next() is None
    assert next(naps, None) is None and noted == []


def test_a_shard_is_counted_by_one_of_all(tmp_path: Path) -> None:
    plan = shared_plan([8, 8], {0, 1}, 2, 1)
    catalog = Images([8, 8])
    for share in (opened(tmp_path), joined(tmp_path)):
        queue, _ = queue_of(plan, share, 0, catalog)
        taken = [work for _ in range(2) if (work := queue.next()) and commit(share, work)]
        assert len(taken) == 2
    assert catalog.asked == {0: 1, 1: 1}


# --- Commits -----------------------------------------------------------------------------------------------------


def test_of_two_that_do_the_same_range_one_counts(tmp_path: Path) -> None:
    one = SharedStore(tmp_path, opened(tmp_path))
    other = SharedStore(tmp_path, joined(tmp_path))
    before = one.snapshot()
    write(one, WorkRange(4, 0, 5))
    with pytest.raises(DoneByAnotherError):
        write(other, WorkRange(4, 0, 5), seed=1)
    assert len(names_in(tmp_path / "parts")) == 3  # none of the other's
    assert not finish_shard(one, before, 4, 8)
    write(other, WorkRange(4, 5, 8))
    assert finish_shard(other, before, 4, 8) and finish_shard(one, before, 4, 8)
    with pytest.raises(DoneByAnotherError):
        write(one, WorkRange(4, 5, 8))  # it was frozen, and has not heard of anything
    alone = Store(tmp_path / "alone")
    alone.root.mkdir()
    for work in (WorkRange(4, 0, 5), WorkRange(4, 5, 8)):
        write(alone, work)
    alone.assemble(0, 4, alone.snapshot().committed[4], alone.snapshot())
    assert files_of(tmp_path) == files_of(alone.root) != {}
    assert Store(tmp_path).snapshot().finished[4].stop == 8
    assert not names_in(tmp_path / "parts")


def test_two_that_put_a_shard_together_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, fast = SharedStore(tmp_path, opened(tmp_path)), SharedStore(tmp_path, joined(tmp_path))
    before = slow.snapshot()
    write(slow, WorkRange(0, 0, 5))
    write(slow, WorkRange(0, 5, 9))
    assemble = slow.assemble

    def interrupted(*arguments: object) -> object:
        fall_silent(slow.share)
        assert finish_shard(fast, before, 0, 9)
        return assemble(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(slow, "assemble", interrupted)
    assert finish_shard(slow, before, 0, 9)
    assert covers(Store(tmp_path).snapshot().committed[0], 9)


def test_who_waits_at_the_end_does_what_a_dead_job_has_left(tmp_path: Path) -> None:
    dead, mine = SharedStore(tmp_path, opened(tmp_path)), SharedStore(tmp_path, joined(tmp_path))
    before = mine.snapshot()
    for shard_ in (0, 1):
        write(dead, WorkRange(shard_, 0, 6))
    assert dead.share.claim(0, "finish")
    fall_silent(dead.share)
    assert mine.share.claim(2, COUNT)
    mine.share.count({"id": 2, "images": 0})
    finish_all(mine, before, {0: 6, 1: 6, 2: UNCOUNTED})
    assert sorted(Store(tmp_path).snapshot().finished) == [0, 1]


def test_what_nobody_does_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SharedStore(tmp_path, opened(tmp_path))
    write(store, WorkRange(0, 0, 6))
    monkeypatch.setattr(sharing, "PATIENCE", 0)
    with pytest.raises(OutputError, match=r"1 shards \(the first: 0\) lack images that no job has in hand"):
        finish_all(store, store.snapshot(), {0: 8})


def test_the_next_job_goes_on_from_what_dead_ones_have_committed(tmp_path: Path) -> None:
    store = SharedStore(tmp_path, opened(tmp_path))
    write(store, WorkRange(0, 0, 6))
    write(store, WorkRange(0, 8, 12))
    lost = SharedStore(tmp_path, joined(tmp_path))
    with pytest.raises(DoneByAnotherError):
        write(lost, WorkRange(0, 8, 12))
    (tmp_path / "parts" / "img_emb_000000_000000006-000000008_20000-0.npy").write_bytes(b"of a killed one")
    now = recover(Store(tmp_path), {0: 12})
    assert [(entry.start, entry.stop) for entry in now.committed[0]] == [(0, 6), (8, 12)]
    assert not (tmp_path / "shared").exists()
    assert len(names_in(tmp_path / "parts")) == 6
    assert (tmp_path / "ranks" / "rank_00000.jsonl").read_text().count("\n") == 2
    recover(Store(tmp_path), {0: 12})
    assert (tmp_path / "ranks" / "rank_00000.jsonl").read_text().count("\n") == 2


# --- The lock ----------------------------------------------------------------------------------------------------


def test_one_is_first_and_others_join_it(tmp_path: Path) -> None:
    session = OutputSession(tmp_path, resume=True, share_seconds=SILENT).__enter__()
    assert not session.joined
    session.begin({"base": "x"}, [])
    session.open_share({"targets": []})

    def join() -> None:
        with OutputSession(tmp_path, resume=True, share_seconds=1) as other:
            assert other.joined and other.share is not None
            assert (other.share.me, other.share.seconds) == (RANKS, SILENT)
            with pytest.raises(OutputError, match="another kind"):
                other.check({"base": "y"})

    assert in_child(join) == 0
    assert in_child(lambda: alone(tmp_path)) == 7
    session.__exit__(None, None, None)
    assert in_child(lambda: alone(tmp_path)) == 0


def alone(root: Path) -> None:
    with OutputSession(root, resume=True):
        pass


def test_a_job_that_does_not_share_is_not_joined(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    lock.claim()
    lock.share()
    assert in_child(lambda: void(lambda: take_part(FolderLock(tmp_path), Share(tmp_path, 0.1)))) == 7


def void(call: Callable[[], object]) -> None:
    call()


def test_a_mistake_of_the_first_leaves_nothing(tmp_path: Path) -> None:
    root = tmp_path / "new" / "output"
    with pytest.raises(OutputError, match="wrong"), OutputSession(root, resume=True, share_seconds=SILENT) as session:
        session.begin({"base": "x"}, [])
        session.open_share({"targets": []})
        raise OutputError("wrong")
    assert not root.parent.exists()
