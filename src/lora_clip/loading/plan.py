"""Which images are still to be embedded, and which rank and worker embeds which."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lora_clip.errors import ConfigError, DataError
from lora_clip.io.addresses import redacted_text
from lora_clip.loading.union import batches_of, first_batch, union
from lora_clip.sources.base import Shard, Source, count_extensions
from lora_clip.types import WorkRange

IMAGES_PER_RANGE = 1024


@dataclass(frozen=True)
class Inventory:
    """The input as it is now: its shards in order, and of each how many leading positions are wanted."""

    shards: Sequence[Shard]
    targets: Mapping[int, int]

    @property
    def images(self) -> int:
        """The number of images wanted in all."""
        return sum(self.targets.values())


def take_inventory(source: Source, known: Sequence[Shard] = (), limit: int | None = None) -> Inventory:
    """What the source holds, up to `limit` images in input order.

    Raises DataError where there is no image at all, ConfigError for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"data.limit={limit}: give a number of images, 1 or more, or null for all")
    shards: list[Shard] = []
    targets: dict[int, int] = {}
    found = 0
    for shard in source.shards(known):
        shards.append(shard)
        targets[shard.id] = shard.images if limit is None else min(shard.images, limit - found)
        found += targets[shard.id]
        if limit is not None and found >= limit:
            break
    if not found:
        left_out = count_extensions(shards)[1]
        passed_over = f"; data.image_key leaves out {dict(left_out)}" if left_out else ""
        raise DataError(f"{_where(source)}: no image in it ({len(shards)} shards looked at{passed_over})")
    return Inventory(shards, targets)


def _where(source: Source) -> str:
    return redacted_text(", ".join(f"{name}={value}" for name, value in vars(source).items() if value is not None))


@dataclass(frozen=True)
class RankPlan:
    """What one rank does: `shares[worker]` is a list of ranges, and the shards are those that they read.

    `targets` counts the wanted positions of each shard; `local` names the shards that this rank can finish alone;
    `images` is how many the whole run embeds, `images_each` how many of them each output lacks. A range that not all
    outputs lack has the numbers of those that do in `only`.
    """

    shards: Mapping[int, Shard]
    targets: Mapping[int, int]
    shares: Sequence[Sequence[WorkRange]]
    local: frozenset[int]
    images: int
    images_each: Sequence[int]
    only: Mapping[WorkRange, frozenset[int]]

    @property
    def needed(self) -> frozenset[int]:
        """The outputs that lack anything at all."""
        return frozenset(number for number, images in enumerate(self.images_each) if images)

    def lacking(self, work: WorkRange) -> Collection[int]:
        """The outputs that lack a range, in order."""
        return sorted(self.only[work]) if work in self.only else range(len(self.images_each))


@dataclass(frozen=True)
class Plan:
    """What this run does: the work ranges of every worker of every rank, and the shards that they read.

    `shares[rank][worker]` is a list of ranges; `targets` counts the wanted positions of each shard; `local` names the
    shards of which all missing ranges belong to one rank, so that this rank can finish them alone. `images_each` and
    `only` as in RankPlan.
    """

    shards: Mapping[int, Shard]
    targets: Mapping[int, int]
    shares: Sequence[Sequence[Sequence[WorkRange]]]
    local: frozenset[int] = field(default_factory=frozenset)
    images_each: Sequence[int] = (0,)
    only: Mapping[WorkRange, frozenset[int]] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """How many images this run embeds."""
        return sum(work.stop - work.start for rank in self.shares for worker in rank for work in worker)

    def by_rank(self) -> list[RankPlan]:
        """Every rank's share, which is all that is sent to it: the names of a large folder's files are gigabytes."""
        return [self._share(shares) for shares in self.shares]

    def _share(self, shares: Sequence[Sequence[WorkRange]]) -> RankPlan:
        ids = sorted({work.shard for worker in shares for work in worker})
        shards = {id_: self.shards[id_] for id_ in ids}
        targets = {id_: self.targets[id_] for id_ in ids}
        local = self.local.intersection(ids)
        only = {work: self.only[work] for worker in shares for work in worker if work in self.only}
        return RankPlan(shards, targets, shares, local, self.images, self.images_each, only)


def make_plan(
    inventory: Inventory,
    *done: Mapping[int, Sequence[tuple[int, int]]],
    ranks: int,
    workers: int,
    batch_size: int,
) -> Plan:
    """The missing positions, shared evenly by bytes over ranks x workers, each worker's in one contiguous run.

    `done` holds, for each output, the committed [start, stop) runs of each shard. Ranges start at multiples of the
    batch size from where a gap starts, so that the division into batches, and with it every output byte, is the same
    however work is shared. Each output gets the very batches that it would get alone; those in which outputs agree are
    read and decoded once.
    """
    if batch_size < 1:
        raise ConfigError(f"data.batch_size={batch_size}: give a number of images, 1 or more")
    by_id = {shard.id: shard for shard in inventory.shards}
    of_each = [_missing(inventory.targets, own) for own in done]
    gaps, only = union(of_each, batch_size)
    density = {id_: shard.bytes / max(1, shard.images) for id_, shard in by_id.items()}
    flat = share_out(gaps, density, ranks * max(1, workers), batch_size)
    per_rank = max(1, workers)
    shares = [flat[rank * per_rank : (rank + 1) * per_rank] for rank in range(ranks)]
    needed = {gap.shard for gap in gaps}
    return Plan(
        {id_: by_id[id_] for id_ in needed},
        {id_: inventory.targets[id_] for id_ in needed},
        shares,
        _local(shares),
        tuple(sum(gap.stop - gap.start for own in of_each_shard.values() for gap in own) for of_each_shard in of_each),
        {work: only[first] for worker in flat for work in worker if (first := first_batch(work, batch_size)) in only},
    )


def _missing(targets: Mapping[int, int], done: Mapping[int, Sequence[tuple[int, int]]]) -> dict[int, list[WorkRange]]:
    """What one output lacks of each shard."""
    gaps = {id_: [WorkRange(id_, *gap) for gap in _gaps(done.get(id_, ()), target)] for id_, target in targets.items()}
    return {id_: found for id_, found in gaps.items() if found}


def _gaps(done: Iterable[tuple[int, int]], target: int) -> Iterator[tuple[int, int]]:
    position = 0
    for start, stop in sorted(run for run in done if run[0] < run[1]):
        if position < min(start, target):
            yield position, min(start, target)
        position = max(position, stop)
    if position < target:
        yield position, target


def share_out(
    gaps: Sequence[WorkRange], density: Mapping[int, float], consumers: int, batch_size: int
) -> list[list[WorkRange]]:
    """Cut the gaps into `consumers` contiguous runs of about equal bytes (`density`: bytes per image of a shard)."""
    total = sum((gap.stop - gap.start) * (density[gap.shard] + 1) for gap in gaps)
    batches = sum(-((gap.start - gap.stop) // batch_size) for gap in gaps)
    shares: list[list[WorkRange]] = [[] for _ in range(consumers)]
    before, consumer = 0.0, -1
    for index, (gap, batch) in enumerate(batches_of(gaps, batch_size)):
        weight = (batch.stop - batch.start) * (density[batch.shard] + 1)
        fair = int((before + weight / 2) / total * consumers)
        consumer = _within(fair, consumer, batches - index, consumers, batches >= consumers)
        _append(shares[consumer], batch, goes_on=batch.start > gap.start)
        before += weight
    return shares


def _within(fair: int, last: int, batches_left: int, consumers: int, enough: bool) -> int:
    """The consumer nearest to the fair one that leaves nobody idle.

    With `enough` batches none is passed over, and as many batches are left as there are consumers after it; with fewer
    batches than consumers none gets two.
    """
    if enough:
        return min(max(fair, last, consumers - batches_left), last + 1)
    return max(min(fair, consumers - batches_left), last + 1)


def _append(ranges: list[WorkRange], batch: WorkRange, goes_on: bool) -> None:
    """Extend the last range by the batch where its gap goes on and it stays small enough to be committed at once."""
    if ranges and goes_on:
        last = ranges[-1]
        if (last.shard, last.stop) == (batch.shard, batch.start) and batch.stop - last.start <= IMAGES_PER_RANGE:
            ranges[-1] = WorkRange(last.shard, last.start, batch.stop)
            return
    ranges.append(batch)


def _local(shares: Sequence[Sequence[Sequence[WorkRange]]]) -> frozenset[int]:
    owners: dict[int, set[int]] = {}
    for rank, workers in enumerate(shares):
        for work in (work for worker in workers for work in worker):
            owners.setdefault(work.shard, set()).add(rank)
    return frozenset(shard for shard, ranks in owners.items() if len(ranks) == 1)
