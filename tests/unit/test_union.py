"""What several outputs lack as one plan: each gets the batches that it would get alone, shared where they agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from hypothesis import given
from hypothesis import strategies as st

from helpers.plans import inventory
from helpers.queues import taken
from lora_clip.loading.plan import Plan, make_plan
from lora_clip.types import WorkRange

Done = Mapping[int, Sequence[tuple[int, int]]]
RUNS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), max_size=4)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], list[Done], dict[str, int]]:
    """Shards, what each of some outputs holds of them, and hands."""
    sizes = draw(st.lists(st.integers(0, 50), min_size=1, max_size=3))
    runs = st.fixed_dictionaries({shard: RUNS.map(disjoint) for shard in range(len(sizes))})
    hands = {name: draw(st.integers(1, 3)) for name in ("ranks", "workers")} | {"batch_size": draw(st.integers(1, 7))}
    return sizes, draw(st.lists(runs, min_size=1, max_size=3)), hands


def disjoint(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Committed runs that do not overlap, some far from multiples of the batch size."""
    found: list[tuple[int, int]] = []
    for start, length in sorted(runs):
        if not found or start >= found[-1][1]:
            found.append((start, start + length))
    return found


def batches(plan: Plan, batch_size: int, output: int) -> Counter[tuple[int, int, int]]:
    """The batches that an output gets, cut as a worker cuts them."""
    found: Counter[tuple[int, int, int]] = Counter()
    for work in (work for share in taken(plan, [2, 0, 1, 1, 3]) for work in share if output in plan.lacking(work)):
        found.update(
            (work.shard, start, min(start + batch_size, work.stop))
            for start in range(work.start, work.stop, batch_size)
        )
    return found


@given(cases())
def test_each_output_gets_the_batches_that_it_would_get_alone(
    case: tuple[list[int], list[Done], dict[str, int]],
) -> None:
    sizes, done, hands = case
    together = make_plan(inventory(*sizes), *done, **hands)
    for output, own in enumerate(done):
        alone = make_plan(inventory(*sizes), own, **hands)
        assert batches(together, hands["batch_size"], output) == batches(alone, hands["batch_size"], 0)
        assert together.images_each[output] == alone.images


def test_what_outputs_agree_in_is_planned_once() -> None:
    hands = {"ranks": 1, "workers": 1, "batch_size": 10}
    none: Done = {}
    assert make_plan(inventory(100), none, none, none, **hands).images == 100
    killed = make_plan(inventory(100), {0: [(0, 20)]}, {0: [(0, 30)]}, {0: [(0, 20)]}, **hands)
    assert killed.images == 80 and killed.images_each == (80, 70, 80)
    assert killed.gaps == [WorkRange(0, 20, 30), WorkRange(0, 30, 100)]
    assert [list(killed.lacking(gap)) for gap in killed.gaps] == [[0, 2], [0, 1, 2]]
    added = make_plan(inventory(100), {0: [(0, 100)]}, none, **hands)
    assert added.images == 100 and added.images_each == (0, 100) and added.needed == {1}


def test_outputs_whose_gaps_begin_at_other_remainders_have_batches_of_their_own() -> None:
    plan = make_plan(inventory(40), {0: [(0, 15)]}, {}, ranks=1, workers=1, batch_size=10)
    assert plan.images_each == (25, 40) and plan.images == 65
