"""Which images are still to be embedded, and which rank and worker embeds which."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lora_clip.errors import ConfigError, DataError
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
    return ", ".join(f"{name}={value}" for name, value in vars(source).items() if value is not None)


@dataclass(frozen=True)
class RankPlan:
    """What one rank does: `shares[worker]` is a list of ranges, and the shards are those that they read.

    `targets` counts the wanted positions of each shard; `local` names the shards that this rank can finish alone;
    `images` is how many the whole run embeds.
    """

    shards: Mapping[int, Shard]
    targets: Mapping[int, int]
    shares: Sequence[Sequence[WorkRange]]
    local: frozenset[int]
    images: int


@dataclass(frozen=True)
class Plan:
    """What this run does: the work ranges of every worker of every rank, and the shards that they read.

    `shares[rank][worker]` is a list of ranges; `targets` counts the wanted positions of each shard; `local` names the
    shards of which all missing ranges belong to one rank, so that this rank can finish them alone.
    """

    shards: Mapping[int, Shard]
    targets: Mapping[int, int]
    shares: Sequence[Sequence[Sequence[WorkRange]]]
    local: frozenset[int] = field(default_factory=frozenset)

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
        return RankPlan(shards, targets, shares, self.local.intersection(ids), self.images)


def make_plan(
    inventory: Inventory,
    done: Mapping[int, Sequence[tuple[int, int]]],
    *,
    ranks: int,
    workers: int,
    batch_size: int,
) -> Plan:
    """The missing positions, shared evenly by bytes over ranks x workers, each worker's in one contiguous run.

    `done` holds the committed [start, stop) runs of each shard. Ranges start at multiples of the batch size from where
    a gap starts, so that the division into batches, and with it every output byte, is the same however work is shared.
    """
    if batch_size < 1:
        raise ConfigError(f"data.batch_size={batch_size}: give a number of images, 1 or more")
    by_id = {shard.id: shard for shard in inventory.shards}
    gaps = [
        WorkRange(shard_id, start, stop)
        for shard_id, target in inventory.targets.items()
        for start, stop in _gaps(done.get(shard_id, ()), target)
    ]
    density = {id_: shard.bytes / max(1, shard.images) for id_, shard in by_id.items()}
    flat = share_out(gaps, density, ranks * max(1, workers), batch_size)
    per_rank = max(1, workers)
    shares = [flat[rank * per_rank : (rank + 1) * per_rank] for rank in range(ranks)]
    needed = {gap.shard for gap in gaps}
    return Plan(
        {id_: by_id[id_] for id_ in needed}, {id_: inventory.targets[id_] for id_ in needed}, shares, _local(shares)
    )


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
    for index, batch in enumerate(_batches(gaps, batch_size)):
        weight = (batch.stop - batch.start) * (density[batch.shard] + 1)
        fair = int((before + weight / 2) / total * consumers)
        consumer = _within(fair, consumer, batches - index, consumers, batches >= consumers)
        _append(shares[consumer], batch)
        before += weight
    return shares


def _batches(gaps: Iterable[WorkRange], batch_size: int) -> Iterator[WorkRange]:
    for shard, begin, stop in gaps:
        for start in range(begin, stop, batch_size):
            yield WorkRange(shard, start, min(start + batch_size, stop))


def _within(fair: int, last: int, batches_left: int, consumers: int, enough: bool) -> int:
    """The consumer nearest to the fair one that leaves nobody idle.

    With `enough` batches none is passed over, and as many batches are left as there are consumers after it; with fewer
    batches than consumers none gets two.
    """
    if enough:
        return min(max(fair, last, consumers - batches_left), last + 1)
    return max(min(fair, consumers - batches_left), last + 1)


def _append(ranges: list[WorkRange], batch: WorkRange) -> None:
    """Extend the last range by the batch where it goes on and stays small enough to be committed at once."""
    if ranges:
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
