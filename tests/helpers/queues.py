"""The work of a plan, taken by its workers in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import cycle

from lora_clip.loading.counters import SharedMemory
from lora_clip.loading.plan import Plan
from lora_clip.loading.queue import Indices, SharedQueue
from lora_clip.types import WorkRange


def queues_of(plan: Plan, count: Callable[[int], int] = lambda shard: 0) -> list[SharedQueue]:
    """A queue for each worker of each rank, as they share them; `count` is asked for shards that are not counted."""
    counters = SharedMemory(len(Indices(plan)))
    return [
        SharedQueue(plan, counters, rank, worker, count)
        for rank in range(len(plan.runs))
        for worker in range(plan.workers)
    ]


def taken(
    plan: Plan, turns: Iterable[int] = (0,), count: Callable[[int], int] = lambda shard: 0
) -> list[list[WorkRange]]:
    """What each worker takes, where they take turns as `turns` says, over and over."""
    queues = queues_of(plan, count)
    ranges: list[list[WorkRange]] = [[] for _ in queues]
    order = cycle([turn % len(ranges) for turn in turns])
    working = set(range(len(ranges)))
    while working:
        worker = next(order)
        worker = worker if worker in working else min(working)
        if (work := queues[worker].next()) is None:
            working.remove(worker)
        else:
            ranges[worker].append(work)
    return ranges


def alone(plan: Plan) -> SharedQueue:
    """The queue of a plan for one worker."""
    (queue,) = queues_of(plan)
    return queue
