"""plan: every missing position in exactly one range, and the same batches however the work is shared."""

from __future__ import annotations

import pickle
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.plans import inventory, not_counted, shard
from lora_clip.errors import ConfigError, DataError
from lora_clip.loading import plan as plan_module
from lora_clip.loading.plan import SMALL, Inventory, make_plan, take_inventory
from lora_clip.sources.base import Shard, Source
from lora_clip.types import UNCOUNTED, RawSample, WorkRange

Runs = dict[int, list[tuple[int, int]]]
Situation = tuple[Inventory, Runs, int]


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
def test_the_gaps_are_exactly_the_missing_positions(situation: Situation, ranks: int, workers: int) -> None:
    found, done, batch_size = situation
    plan = make_plan(found, done, ranks=ranks, workers=workers, batch_size=batch_size)
    assert positions(plan.gaps) == missing(found, done)
    assert plan.images == plan.images_each[0] == missing(found, done).total() and plan.counted
    assert sorted(plan.gaps) == plan.gaps and all(gap.stop > gap.start for gap in plan.gaps)
    assert set(plan.shards) == set(plan.targets) == {gap.shard for gap in plan.gaps}
    assert (len(plan.runs), plan.workers) == (ranks, max(1, workers))


@settings(max_examples=300, deadline=None)
@given(situation=situations(), **hands)
def test_each_rank_begins_with_a_run_of_gaps_of_about_equal_bytes(
    situation: Situation, ranks: int, workers: int
) -> None:
    found, done, batch_size = situation
    plan = make_plan(found, done, ranks=ranks, workers=workers, batch_size=batch_size)
    assert [gap for start, stop in plan.runs for gap in plan.gaps[start:stop]] == plan.gaps
    density = {one.id: one.bytes / max(1, one.images) + 1 for one in found.shards}
    weights = [(gap.stop - gap.start) * density[gap.shard] for gap in plan.gaps]
    heaviest = max(weights, default=0.0)
    assert all(sum(weights[start:stop]) <= sum(weights) / ranks + heaviest + 1 for start, stop in plan.runs)


def test_shards_that_nobody_has_counted_are_planned_as_they_are() -> None:
    found = Inventory([shard(0, 100, 5_000), not_counted(1, 10_000)], {0: 100, 1: UNCOUNTED})
    plan = make_plan(found, {0: [(0, 40)]}, ranks=1, workers=2, batch_size=8)
    assert plan.gaps == [WorkRange(0, 40, 100), WorkRange(1, 0, UNCOUNTED)]
    assert not plan.counted
    assert (plan.images, plan.images_each) == (60 + 200, (260,)), "estimated from the bytes of images that are known"
    assert plan.bytes == 60 + 3_000 + 10_000


def test_with_nothing_missing_there_is_no_work() -> None:
    plan = make_plan(inventory(5, 7), {0: [(0, 5)], 1: [(3, 9), (0, 3)]}, ranks=2, workers=2, batch_size=4)
    assert (plan.images, plan.gaps, plan.runs, plan.shards) == (0, [], [(0, 0), (0, 0)], {})


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
    assert positions(plan.gaps) == Counter((1, position) for position in range(10, 40))


@dataclass
class Uncounted(Listed):
    """A source to which counting is work; `looked_into` are the shards that it was asked to count."""

    bytes_each: int = SMALL
    looked_into: list[int] = field(default_factory=list)

    def shards(self, known: Sequence[Shard]) -> Iterator[Shard]:
        return (not_counted(id_, self.bytes_each) for id_ in range(len(self.sizes)))

    def count(self, one: Shard) -> Shard:
        self.looked_into.append(one.id)
        return shard(one.id, self.sizes[one.id])


def test_no_shard_is_looked_into_before_work_but_the_first_with_an_image() -> None:
    source = Uncounted([0, 5, 7, 9, 4])
    found = take_inventory(source)
    assert source.looked_into == [0, 1]
    assert dict(found.targets) == {0: 0, 1: 5, 2: UNCOUNTED, 3: UNCOUNTED, 4: UNCOUNTED} and found.images == 5


def test_a_small_input_is_counted_and_a_limit_counts_as_far_as_it_goes() -> None:
    small = Uncounted([5, 7, 9], bytes_each=SMALL // 3)
    assert dict(take_inventory(small).targets) == {0: 5, 1: 7, 2: 9}
    limited = Uncounted([5, 7, 9, 3])
    assert dict(take_inventory(limited, limit=14).targets) == {0: 5, 1: 7, 2: 2} and limited.looked_into == [0, 1, 2]


def test_a_plan_holds_little_of_each_shard_and_sends_less() -> None:
    source = Uncounted([7] * 10_000)
    tracemalloc.start()
    try:
        found = take_inventory(source)
        plan = make_plan(found, {}, ranks=64, workers=16, batch_size=256)
        sent = len(pickle.dumps(replace(plan, shards={})))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(plan.gaps) == 10_000 == len(plan.shards) and not plan.counted
    assert peak < 400 * 10_000 and sent < 50 * 10_000, "of shards as objects it is 2 KB each"


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


class Slow:
    """A source whose listing takes a moment."""

    def shards(self, known: Sequence[Shard]) -> Iterator[Shard]:
        for id_ in range(3):
            time.sleep(0.02)
            yield shard(id_, 4)


def test_a_listing_that_takes_long_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    take_inventory(cast(Source, Slow()))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(plan_module, "LISTED_AFTER", 0.01)
    monkeypatch.setattr(plan_module, "LISTED_EVERY_WITHOUT_TERMINAL", 0)
    take_inventory(cast(Source, Slow()))
    assert "3 shards listed" in capsys.readouterr().err
