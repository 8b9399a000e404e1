"""plan: every missing position in exactly one range, and the same batches however the work is shared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.plans import inventory, shard
from lora_clip.errors import ConfigError, DataError
from lora_clip.loading.plan import IMAGES_PER_RANGE, Inventory, Plan, make_plan, take_inventory
from lora_clip.sources.base import Shard
from lora_clip.types import RawSample, WorkRange

Runs = dict[int, list[tuple[int, int]]]
Situation = tuple[Inventory, Runs, int]


def ranges_of(plan: Plan) -> list[WorkRange]:
    return [work for rank in plan.shares for worker in rank for work in worker]


def batches_of(plan: Plan, batch_size: int) -> list[WorkRange]:
    return [
        WorkRange(work.shard, start, min(start + batch_size, work.stop))
        for work in ranges_of(plan)
        for start in range(work.start, work.stop, batch_size)
    ]


def positions(ranges: Sequence[WorkRange]) -> Counter[tuple[int, int]]:
    return Counter((work.shard, position) for work in ranges for position in range(work.start, work.stop))


def missing(found: Inventory, done: Runs) -> Counter[tuple[int, int]]:
    wanted = {(id_, position) for id_, target in found.targets.items() for position in range(target)}
    return Counter(
        wanted - {(id_, p) for id_, runs in done.items() for start, stop in runs for p in range(start, stop)}
    )


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    """Shards of any sizes and weights, of which runs are committed, and a batch size."""
    sizes = draw(st.lists(st.integers(0, 90), min_size=1, max_size=9))
    weights = draw(st.lists(st.integers(1, 10**6), min_size=len(sizes), max_size=len(sizes)))
    run = st.tuples(st.integers(0, 90), st.integers(0, 30)).map(lambda pair: (pair[0], pair[0] + pair[1]))
    done = draw(st.dictionaries(st.integers(0, len(sizes) - 1), st.lists(run, max_size=3), max_size=4))
    return inventory(*sizes, weights=weights), done, draw(st.integers(1, 40))


hands = {"ranks": st.integers(1, 6), "workers": st.integers(0, 5)}


@settings(max_examples=300, deadline=None)
@given(situation=situations(), **hands)
def test_the_ranges_are_exactly_the_missing_positions(situation: Situation, ranks: int, workers: int) -> None:
    found, done, batch_size = situation
    plan = make_plan(found, done, ranks=ranks, workers=workers, batch_size=batch_size)
    assert positions(ranges_of(plan)) == missing(found, done)
    assert plan.images == missing(found, done).total()
    assert [len(plan.shares), *{len(rank) for rank in plan.shares}] == [ranks, max(1, workers)]
    assert all(work.stop > work.start for work in ranges_of(plan))


@settings(max_examples=300, deadline=None)
@given(situation=situations(), **hands)
def test_the_batches_are_the_same_however_the_work_is_shared(situation: Situation, ranks: int, workers: int) -> None:
    found, done, batch_size = situation
    alone = make_plan(found, done, ranks=1, workers=0, batch_size=batch_size)
    plan = make_plan(found, done, ranks=ranks, workers=workers, batch_size=batch_size)
    assert batches_of(plan, batch_size) == batches_of(alone, batch_size)
    for left, right in pairwise(batches_of(plan, batch_size)):
        if left.shard == right.shard and left.stop == right.start:
            assert left.stop - left.start == batch_size


@settings(max_examples=300, deadline=None)
@given(situation=situations(), **hands)
def test_the_work_is_in_order_even_and_nobody_is_idle(situation: Situation, ranks: int, workers: int) -> None:
    found, done, batch_size = situation
    plan = make_plan(found, done, ranks=ranks, workers=workers, batch_size=batch_size)
    density = {one.id: one.bytes / max(1, one.images) + 1 for one in found.shards}
    shares = [worker for rank in plan.shares for worker in rank]
    batches = batches_of(plan, batch_size)
    busy = sum(1 for share in shares if share)
    assert busy == min(len(batches), len(shares))
    assert sorted(ranges_of(plan)) == ranges_of(plan)
    weights = [sum((p.stop - p.start) * density[p.shard] for p in share) for share in shares]
    heaviest = max(((b.stop - b.start) * density[b.shard] for b in batches), default=0.0)
    assert max(weights) <= sum(weights) / len(shares) + heaviest * (1 + 1e-9)


@settings(max_examples=200, deadline=None)
@given(situation=situations(), **hands)
def test_a_shard_is_local_where_one_rank_has_all_that_is_missing_of_it(
    situation: Situation, ranks: int, workers: int
) -> None:
    found, done, batch_size = situation
    plan = make_plan(found, done, ranks=ranks, workers=workers, batch_size=batch_size)
    owners: dict[int, set[int]] = {}
    for rank, shares in enumerate(plan.shares):
        for work in (work for worker in shares for work in worker):
            owners.setdefault(work.shard, set()).add(rank)
    assert plan.local == {id_ for id_, ranks in owners.items() if len(ranks) == 1}
    assert set(plan.shards) == set(plan.targets) == set(owners)


@settings(max_examples=200, deadline=None)
@given(situation=situations(), **hands)
def test_a_rank_is_given_its_own_ranges_and_shards_and_no_others(
    situation: Situation, ranks: int, workers: int
) -> None:
    found, done, batch_size = situation
    plan = make_plan(found, done, ranks=ranks, workers=workers, batch_size=batch_size)
    plans = plan.by_rank()
    assert [one.shares for one in plans] == list(plan.shares)
    assert {one.images for one in plans} == {plan.images}
    for one in plans:
        read = {work.shard for worker in one.shares for work in worker}
        assert set(one.shards) == set(one.targets) == read
        assert one.local == plan.local & read
        assert all(one.targets[id_] == plan.targets[id_] for id_ in read)


def test_uneven_batches_leave_nobody_idle() -> None:
    plan = make_plan(inventory(1, 1, 1, weights=[1, 1, 100]), {}, ranks=3, workers=1, batch_size=1)
    assert [len(rank[0]) for rank in plan.shares] == [1, 1, 1]


def test_few_batches_are_spread_over_the_ranks() -> None:
    plan = make_plan(inventory(20), {}, ranks=2, workers=4, batch_size=10)
    assert [sum(1 for worker in rank if worker) for rank in plan.shares] == [1, 1]


def test_a_range_is_small_enough_to_be_committed_at_once() -> None:
    plan = make_plan(inventory(10_000), {}, ranks=1, workers=1, batch_size=60)
    assert all(work.stop - work.start <= IMAGES_PER_RANGE for work in ranges_of(plan))
    assert all(work.start % 60 == 0 for work in ranges_of(plan))


def test_with_nothing_missing_there_is_no_work() -> None:
    plan = make_plan(inventory(5, 7), {0: [(0, 5)], 1: [(3, 9), (0, 3)]}, ranks=2, workers=2, batch_size=4)
    assert (plan.images, ranges_of(plan), plan.local, plan.shards) == (0, [], frozenset(), {})


def test_a_batch_size_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        make_plan(inventory(5), {}, ranks=1, workers=1, batch_size=0)


@dataclass
class Listed:
    """A source of shards of given sizes; `asked` counts the shards that were looked at."""

    sizes: Sequence[int]
    asked: int = 0

    def shards(self, known: Sequence[Shard]) -> Iterator[Shard]:
        for id_, size in enumerate(self.sizes):
            self.asked += 1
            yield shard(id_, size)

    def read(self, shard: Shard, work: WorkRange) -> Iterator[RawSample]:
        raise NotImplementedError

    def check(self, shard: Shard) -> str | None:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("limit", "targets"),
    [
        (None, {0: 60, 1: 0, 2: 60, 3: 9}),
        (1, {0: 1}),
        (60, {0: 60}),
        (100, {0: 60, 1: 0, 2: 40}),
        (999, {0: 60, 1: 0, 2: 60, 3: 9}),
    ],
)
def test_the_limit_takes_the_first_in_input_order(limit: int | None, targets: dict[int, int]) -> None:
    source = Listed([60, 0, 60, 9])
    found = take_inventory(source, limit=limit)
    assert dict(found.targets) == targets and found.images == sum(targets.values())
    assert source.asked == len(targets), "shards beyond the limit are not scanned"


def test_a_larger_limit_goes_on_where_the_smaller_one_ended() -> None:
    small = take_inventory(Listed([60, 60]), limit=70)
    done = {id_: [(0, target)] for id_, target in small.targets.items()}
    plan = make_plan(take_inventory(Listed([60, 60]), limit=100), done, ranks=2, workers=1, batch_size=8)
    assert positions(ranges_of(plan)) == Counter((1, position) for position in range(10, 40))


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit: int) -> None:
    with pytest.raises(ConfigError, match=r"data\.limit"):
        take_inventory(Listed([3]), limit=limit)


def test_an_input_without_images_is_an_error_that_names_what_was_left_out() -> None:
    class Masks(Listed):
        def shards(self, known: Sequence[Shard]) -> Iterator[Shard]:
            yield replace(shard(0, 0), left_out={"png": 7})

    with pytest.raises(DataError, match=r"no image in it \(2 shards looked at\)"):
        take_inventory(Listed([0, 0]))
    with pytest.raises(DataError, match=r"image_key leaves out \{'png': 7\}"):
        take_inventory(Masks([]))
