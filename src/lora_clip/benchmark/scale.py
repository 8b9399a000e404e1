"""Very many ranks in time that is made up: the real planner and the real queue, and how long all of it would take.

python -m lora_clip.benchmark.scale --ranks 512 --workers 16 --shards 100000 --deaths 20

Each range takes as long as its rank is fast; some ranks are half as fast, some images take very long, ranks die. What
is asked of the counters is counted, and takes its time too: they are one store, which answers so many a second.
"""

from __future__ import annotations

import argparse
import heapq
import random
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from lora_clip.loading.plan import Inventory, Plan, make_plan, targets_of
from lora_clip.loading.queue import Indices, SharedQueue
from lora_clip.sources.base import Shard
from lora_clip.sources.shard_list import ShardList
from lora_clip.types import UNCOUNTED, WorkRange


@dataclass(frozen=True)
class Cluster:
    """What is simulated: sizes in images, times in seconds, rates a second.

    `slow` is the share of ranks that are half as fast, `stuck` of images that take `stuck_seconds`. `deaths` of ranks
    happen at random times within the ideal time; with `alone` the others go on, and without the whole group begins
    again after `restart`.
    """

    ranks: int = 512
    workers: int = 16
    shards: int = 100_000
    images: int = 10_000
    spread: float = 0.3
    batch_size: int = 256
    rate: float = 2000.0
    slow: float = 0.05
    stuck: float = 1e-6
    stuck_seconds: float = 30.0
    deaths: int = 0
    alone: bool = False
    restart: float = 90.0
    requests: float = 25_000.0
    round_trip: float = 0.0002
    seed: int = 0


@dataclass
class CountedRequests:
    """Counters in memory, which note how often they were asked."""

    values: list[int]
    asked: int = 0
    held: AbstractContextManager[Any] = field(default_factory=nullcontext)

    def add(self, index: int, amount: int) -> int:
        """Add to a number; what it was before."""
        self.asked += 1
        before = self.values[index]
        self.values[index] = before + amount
        return before

    def put(self, index: int, value: int) -> None:
        """Set a number."""
        self.asked += 1
        self.values[index] = value

    def peek(self, index: int) -> int:
        """What a number is now."""
        self.asked += 1
        return self.values[index]


@dataclass
class Outcome:
    """What came of it: seconds of made-up time, images, requests; `again` counts images that were embedded twice."""

    images: int
    ideal: float
    seconds: float = 0.0
    requests: int = 0
    busiest: int = 0
    rounds: int = 0
    again: int = 0
    idle_at_end: float = 0.0

    @property
    def efficiency(self) -> float:
        """The share of what all ranks could have done in that time."""
        return self.ideal / self.seconds


class Simulation:
    """A job from the first range to the last, over as many rounds as its ranks' deaths make necessary."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.chance = random.Random(cluster.seed)
        self.sizes = self._sizes()
        self.speeds = [cluster.rate / (2 if self.chance.random() < cluster.slow else 1) for _ in range(cluster.ranks)]
        stuck = sum(self.sizes) * cluster.stuck * cluster.stuck_seconds / (cluster.ranks * cluster.workers)
        self.outcome = Outcome(sum(self.sizes), sum(self.sizes) / sum(self.speeds) + stuck)
        until = self.outcome.ideal
        self.deaths = sorted(
            (self.chance.random() * until, self.chance.randrange(cluster.ranks)) for _ in range(cluster.deaths)
        )
        self.done: dict[int, list[tuple[int, int]]] = {}

    def _sizes(self) -> list[int]:
        spread, mean = self.cluster.spread, self.cluster.images
        return [max(1, round(self.chance.lognormvariate(0, spread) * mean)) for _ in range(self.cluster.shards)]

    def run(self) -> Outcome:
        """Until every image is committed."""
        while (plan := self._plan()).gaps:
            self.outcome.rounds += 1
            self._round(plan)
        return self.outcome

    def _plan(self) -> Plan:
        """What is missing, planned as a job does: a shard is counted once something of it is committed."""
        shards = ShardList(
            Shard(id_, "tar", "", size if id_ in self.done else UNCOUNTED, size * 30_000, "")
            for id_, size in enumerate(self.sizes)
        )
        found = Inventory(shards, targets_of(shards, limit=None))
        one = self.cluster
        return make_plan(found, self.done, ranks=one.ranks, workers=one.workers, batch_size=one.batch_size)

    def _round(self, plan: Plan) -> None:
        """Until no worker has work, or until a death ends it for all."""
        counters = CountedRequests([0] * len(Indices(plan)))
        queues = [
            SharedQueue(plan, counters, *divmod(n, plan.workers), self.sizes.__getitem__) for n in self._workers()
        ]
        began, served, dead = self.outcome.seconds, self.outcome.seconds, set[int]()
        free: list[tuple[float, int, WorkRange | None]] = [(began, number, None) for number in self._workers()]
        ended: list[float] = []
        seconds: dict[int, int] = {}
        while free:
            now, number, work = heapq.heappop(free)
            rank = number // plan.workers
            if self._someone_dies(now, dead):
                self._lose([work, *(other for _, _, other in free)])
                self.outcome.seconds = now + self.cluster.restart
                ended.clear()
                break
            if rank in dead:
                self._lose([work])
                continue
            if work is not None:
                self.done.setdefault(work.shard, []).append((work.start, work.stop))
            before = counters.asked
            taken = queues[number].next()
            asked = counters.asked - before
            served = max(served, now) + asked / self.cluster.requests
            seconds[int(served)] = seconds.get(int(served), 0) + asked
            begins = max(served, now + asked * self.cluster.round_trip)
            if taken is None:
                ended.append(now)
            else:
                heapq.heappush(free, (begins + self._takes(rank, taken), number, taken))
        self._end(counters, ended, seconds)

    def _workers(self) -> range:
        return range(self.cluster.ranks * self.cluster.workers)

    def _end(self, counters: CountedRequests, ended: Sequence[float], seconds: dict[int, int]) -> None:
        self.outcome.requests += counters.asked
        self.outcome.busiest = max(self.outcome.busiest, *seconds.values(), 0)
        if ended:
            self.outcome.seconds = max(ended)
            self.outcome.idle_at_end = sum(max(ended) - one for one in ended) / len(ended)

    def _someone_dies(self, now: float, dead: set[int]) -> bool:
        """Whether a death ends the round; where the others go on, who died until now is noted."""
        while self.deaths and self.deaths[0][0] <= now:
            _, rank = self.deaths.pop(0)
            if not self.cluster.alone:
                return True
            dead.add(rank)
        return False

    def _lose(self, works: Sequence[WorkRange | None]) -> None:
        self.outcome.again += sum(work.stop - work.start for work in works if work is not None)

    def _takes(self, rank: int, work: WorkRange) -> float:
        """Seconds for a range by one of the rank's workers; few images take very long."""
        images = work.stop - work.start
        stuck = self.cluster.stuck_seconds if self.chance.random() < images * self.cluster.stuck else 0.0
        return images * self.cluster.workers / self.speeds[rank] + stuck


def describe(cluster: Cluster, outcome: Outcome) -> str:
    """What a person reads."""
    return (
        f"{cluster.ranks:,} ranks x {cluster.workers} workers, {cluster.shards:,} shards, {outcome.images:,} images\n"
        f"time:       {outcome.seconds:,.0f} s, ideal {outcome.ideal:,.0f} s: {outcome.efficiency:.1%} efficient\n"
        f"tail:       a worker waits {outcome.idle_at_end:.1f} s at the end, on average\n"
        f"requests:   {outcome.requests:,} to the store, {outcome.requests / outcome.seconds:,.0f} a second, "
        f"{outcome.busiest:,} in the busiest second (the store answers {cluster.requests:,.0f})\n"
        f"deaths:     {cluster.deaths}, {outcome.rounds} rounds, {outcome.again:,} images embedded again"
    )


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in vars(Cluster()).items():
        if isinstance(default, bool):
            parser.add_argument(f"--{name}", action="store_true", help="the others go on when a rank dies")
        else:
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    cluster, began = Cluster(**vars(parser.parse_args())), time.monotonic()
    print(describe(cluster, Simulation(cluster).run()))
    print(f"simulated in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
