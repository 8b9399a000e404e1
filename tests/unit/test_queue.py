"""queue: whoever takes work when, every missing position is taken once, in the same batches, and all end together."""

from __future__ import annotations

import heapq
import multiprocessing
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.plans import inventory, not_counted, shard
from helpers.queues import alone, queues_of, taken
from lora_clip.loading.counters import Counters, SharedMemory, serve_counters
from lora_clip.loading.plan import Inventory, Plan, make_plan
from lora_clip.loading.queue import IMAGES_PER_RANGE, SharedQueue
from lora_clip.types import UNCOUNTED, WorkRange

hands = {"ranks": st.integers(1, 4), "workers": st.integers(0, 4)}
turns = st.lists(st.integers(0, 15), min_size=1, max_size=12)


def batches_of(ranges: Sequence[WorkRange], batch_size: int) -> Counter[WorkRange]:
    return Counter(
        WorkRange(work.shard, start, min(start + batch_size, work.stop))
        for work in ranges
        for start in range(work.start, work.stop, batch_size)
    )


def all_of(ranges: Sequence[Sequence[WorkRange]]) -> list[WorkRange]:
    return [work for own in ranges for work in own]


@settings(max_examples=300, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 90), min_size=1, max_size=9),
    unknown=st.sets(st.integers(0, 8)),
    done=st.dictionaries(st.integers(0, 8), st.lists(st.tuples(st.integers(0, 40), st.integers(41, 60)), max_size=1)),
    batch_size=st.integers(1, 40),
    turns=turns,
    **hands,
)
def test_everything_is_taken_once_in_the_same_batches_whoever_takes_it(
    sizes: list[int], unknown: set[int], done: dict[int, list[tuple[int, int]]], batch_size: int, turns: list[int],
    ranks: int, workers: int,
) -> None:  # fmt: skip
    shards = [not_counted(i, 999) if i in unknown else shard(i, size) for i, size in enumerate(sizes)]
    done = {id_: runs for id_, runs in done.items() if id_ < len(sizes) and id_ not in unknown}
    known = Inventory([shard(i, size) for i, size in enumerate(sizes)], dict(enumerate(sizes)))
    found = Inventory(shards, {one.id: one.images for one in shards})
    expected = batches_of(all_of(taken(make_plan(known, done, ranks=1, workers=0, batch_size=batch_size))), batch_size)
    plan = make_plan(found, done, ranks=ranks, workers=workers, batch_size=batch_size)
    ranges = all_of(taken(plan, turns, sizes.__getitem__))
    assert batches_of(ranges, batch_size) == expected
    assert set(expected.values()) <= {1}
    assert all(0 < work.stop - work.start <= max(IMAGES_PER_RANGE, batch_size) for work in ranges)


def test_one_worker_takes_all_that_may_be_committed_at_once_in_order() -> None:
    plan = make_plan(inventory(2500, 60), {}, ranks=1, workers=1, batch_size=60)
    (ranges,) = taken(plan)
    assert ranges == [
        WorkRange(0, 0, 1020),
        WorkRange(0, 1020, 2040),
        WorkRange(0, 2040, 2500),
        WorkRange(1, 0, 60),
    ]


def test_each_rank_starts_with_shards_of_its_own() -> None:
    plan = make_plan(inventory(*[1000] * 40), {}, ranks=2, workers=2, batch_size=50)
    firsts = [queue.next() for queue in queues_of(plan)]
    assert [work and work.shard for work in firsts] == [0, 1, 20, 21]


def test_a_shard_that_is_being_counted_is_waited_for_and_then_shared() -> None:
    found = Inventory([not_counted(0, 999)], {0: UNCOUNTED})
    plan = make_plan(found, {}, ranks=1, workers=2, batch_size=10)
    helped: list[WorkRange | None] = []
    queues = queues_of(plan, lambda _: 100)
    first = queues[0].next()
    helped.append(queues[1].next())
    assert first == WorkRange(0, 0, 20) and helped == [WorkRange(0, 20, 40)]


def test_an_empty_shard_is_no_work() -> None:
    plan = make_plan(Inventory([not_counted(0, 9)], {0: UNCOUNTED}), {}, ranks=2, workers=1, batch_size=4)
    assert taken(plan, [0, 1], lambda _: 0) == [[], []]
    assert alone(make_plan(inventory(0), {}, ranks=1, workers=0, batch_size=4)).next() is None


# --- who ends when: workers in time that is made up ---


def time_of(plan: Plan, seconds_per_image: Sequence[float], count: Sequence[int] = ()) -> float:
    """When the last worker has done what it took, each at its own speed."""
    queues = queues_of(plan, count.__getitem__)
    free = [(0.0, worker) for worker in range(len(queues))]
    ended = 0.0
    while free:
        now, worker = heapq.heappop(free)
        if (work := queues[worker].next()) is not None:
            now += (work.stop - work.start) * seconds_per_image[worker]
            heapq.heappush(free, (now, worker))
            ended = max(ended, now)
    return ended


@pytest.mark.parametrize("shards", [[29_104], [1000] * 29 + [104], [7276] * 4])
def test_the_last_batches_of_a_job_are_shared_by_all_workers(shards: list[int]) -> None:
    """114 batches of 256 for 16 workers are 7.1 each: nobody does more than 8, however the images lie in shards."""
    batches = sum(-(-size // 256) for size in shards)
    ended = time_of(make_plan(inventory(*shards), {}, ranks=1, workers=16, batch_size=256), [1 / 256] * 16)
    assert ended <= -(-batches // 16)


@pytest.mark.parametrize("shards", [[12_000], [1000] * 12, [100] * 120])
def test_two_ranks_of_unequal_speed_end_together(shards: list[int]) -> None:
    """One rank half as fast as the other: within a tenth of what both could do together."""
    plan = make_plan(inventory(*shards), {}, ranks=2, workers=2, batch_size=50)
    assert time_of(plan, [1.0, 1.0, 2.0, 2.0]) <= 1.1 * sum(shards) / (1 + 1 + 0.5 + 0.5)


def test_shards_nobody_has_counted_are_shared_as_evenly() -> None:
    sizes = [5000] * 40
    found = Inventory([not_counted(i, 9) for i in range(40)], dict.fromkeys(range(40), UNCOUNTED))
    plan = make_plan(found, {}, ranks=2, workers=8, batch_size=256)
    assert time_of(plan, [1.0] * 16, sizes) <= 1.03 * sum(sizes) / 16


# --- the same between processes ---


def take_all(plan: Plan, counters: Counters, rank: int, sizes: Sequence[int], told: Any) -> None:
    queue = SharedQueue(plan, counters, rank, 0, sizes.__getitem__)
    told.put(list(iter(queue.next, None)))


def test_ranks_share_work_through_a_store() -> None:
    sizes = [300, 500, 40]
    found = Inventory([shard(0, 300), not_counted(1, 9), shard(2, 40)], {0: 300, 1: UNCOUNTED, 2: 40})
    plan = make_plan(found, {}, ranks=3, workers=1, batch_size=16)
    served, store = serve_counters()
    context = multiprocessing.get_context("fork")
    told = context.SimpleQueue()
    ranks = [context.Process(target=take_all, args=(plan, store, rank, sizes, told)) for rank in range(3)]
    for process in ranks:
        process.start()
    ranges = all_of([told.get() for _ in ranks])
    for process in ranks:
        process.join()
    del served
    expected = batches_of([WorkRange(i, 0, size) for i, size in enumerate(sizes)], 16)
    assert batches_of(ranges, 16) == expected


def test_counters_tell_what_was_there_before() -> None:
    served, store = serve_counters()
    for counters in (store, SharedMemory(7)):
        assert [counters.add(5, 2), counters.add(5, 3), counters.peek(5), counters.peek(6)] == [0, 2, 5, 0]
        counters.put(5, 40)
        assert [counters.add(5, 1), counters.peek(5)] == [40, 41]
    del served
