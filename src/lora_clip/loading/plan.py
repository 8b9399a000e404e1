"""Which images are still to be embedded, as far as that is known before any shard was looked into."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby, pairwise
from operator import attrgetter
from typing import Any, cast

from tqdm import tqdm

from lora_clip.compact import IntMap
from lora_clip.errors import ConfigError, DataError
from lora_clip.io.addresses import redacted_text
from lora_clip.loading.gaps import Gaps, Sizes
from lora_clip.loading.union import Who, first_batch, union
from lora_clip.output.share import Share
from lora_clip.sources.base import Estimates, EstimatingSource, Shard, Source, count_extensions, counted
from lora_clip.sources.shard_list import ShardList, ShardsById
from lora_clip.types import UNCOUNTED, WorkRange

LISTED_AFTER, LISTED_EVERY, LISTED_EVERY_WITHOUT_TERMINAL = 3.0, 0.5, 30.0
"""Seconds: before listing is shown, and between two looks at how far it is."""
SMALL = 64_000_000
"""Bytes of an input that is counted before work begins: it takes less time than to notice."""


class Inventory:
    """The input as it is now: its shards in order, and of each how many leading positions are wanted, or UNCOUNTED.

    `announced` is how many images are said to be in shards that nobody had counted, `notes` what a user may know of it.
    """

    def __init__(
        self,
        shards: Iterable[Shard],
        targets: Mapping[int, int],
        announced: Mapping[int, int] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.shards = shards if isinstance(shards, ShardList) else ShardList(shards)
        self.targets, self.announced, self.notes = targets, announced or IntMap(), notes

    def counted_as(self, shards: ShardList, targets: Mapping[int, int]) -> Inventory:
        """The same input, of which more is counted."""
        return Inventory(shards, targets, self.announced, self.notes)

    def refuted(self) -> Iterator[tuple[Shard, int]]:
        """The shards in which another number of images was found than was announced, and what was announced."""
        for at, (id_, images) in enumerate(zip(self.shards.ids, self.shards.images, strict=True)):
            if images not in (UNCOUNTED, self.announced.get(id_, images)):
                yield self.shards[at], self.announced[id_]

    @property
    def images(self) -> int:
        """The number of images wanted in all, of the shards that are counted."""
        return sum(target for target in self.targets.values() if target != UNCOUNTED)


def take_inventory(source: Source, known: Sequence[Shard] = (), limit: int | None = None) -> Inventory:
    """What the source holds, up to `limit` images in input order.

    Shards that nobody has counted are counted as far as a limit asks for it, until there is an image at all (that tells
    early of an input without any, and of images under several extensions), and all of a small input.
    Raises DataError where there is no image at all, ConfigError for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"data.limit={limit}: give a number of images, 1 or more, or null for all")
    estimates = cast(EstimatingSource, source).estimates() if hasattr(source, "estimates") else None
    shards, announced, found = _count_first(source, source.shards(known), limit, estimates)
    if not found:
        left_out = count_extensions(shards)[1]
        passed_over = f"; data.image_key leaves out {dict(left_out)}" if left_out else ""
        raise DataError(f"{where(source)}: no image in it ({len(shards)} shards looked at{passed_over})")
    return Inventory(shards, targets_of(shards, limit), announced, estimates.notes if estimates else ())


def _count_first(
    source: Source, listed: Iterable[Shard], limit: int | None, estimates: Estimates | None
) -> tuple[ShardList, Mapping[int, int], int]:
    """Shards, counted as far as they have to be, what was announced of them, and how many images are known of."""
    shards, found, announced = ShardList(), 0, array("q")
    for one in _shown(listed):
        if estimates and one.images == UNCOUNTED and (said := estimates.of(one)) is not None:
            announced.extend((one.id, said))
        shards.append(one if limit is None and found else counted(source, one))
        found += 0 if shards.images[-1] == UNCOUNTED else shards.images[-1]
        if limit is not None and found >= limit:
            break
    unknown = [size for size, images in zip(shards.bytes, shards.images, strict=True) if images == UNCOUNTED]
    if unknown and sum(unknown) <= SMALL:
        shards = ShardList(counted(source, one) for one in shards)
    return shards, IntMap(zip(announced[::2], announced[1::2], strict=True)), found


def _shown(listed: Iterable[Shard]) -> Iterator[Shard]:
    """Shards as they are listed, with a line that counts them where that takes more than a moment."""
    every = LISTED_EVERY if sys.stderr.isatty() else LISTED_EVERY_WITHOUT_TERMINAL
    line: Any = tqdm(unit=" shards listed", delay=LISTED_AFTER, mininterval=every, leave=False, file=sys.stderr)
    with line:
        for one in listed:
            line.update()
            yield one


def targets_of(shards: ShardList, limit: int | None) -> Mapping[int, int]:
    """How many leading positions of each shard are wanted, or UNCOUNTED."""
    return IntMap(zip(shards.ids, shards.images if limit is None else _up_to(limit, shards.images), strict=True))


def _up_to(limit: int, counts: Iterable[int]) -> Iterator[int]:
    for images in counts:
        yield (taken := min(images, limit))
        limit -= taken


def where(source: Source) -> str:
    """A source as it was typed, without what must not be told."""
    return redacted_text(", ".join(f"{name}={value}" for name, value in vars(source).items() if value is not None))


@dataclass(frozen=True)
class Plan:
    """What this run does: which gaps of which shards are to be embedded, and by how many hands.

    `gaps` are in the order of the input; those of a rank are gaps[start:stop] with its [start, stop) in `runs`, of
    about equal bytes, and `workers` is how many take work in each rank. A gap of an uncounted shard ends at UNCOUNTED.
    `targets` counts the wanted positions of each shard. `images` is how many the whole run embeds, `images_each` how
    many of them each output lacks: estimates unless `counted`. Batches that not all outputs lack have the numbers of
    those that do in `only`. `bytes` adds up what is to be read. `announced` says that what is not counted is known from
    what stands beside the shards: good enough to see how far the run is. Where jobs `share` the work, they take it by
    `cell` images: `share` is as rank 0 of this one sees it. `compile` is rank 0's word on
    `model.compile=auto`.
    """

    shards: Mapping[int, Shard]
    targets: Mapping[int, int]
    gaps: Sequence[WorkRange]
    runs: Sequence[tuple[int, int]]
    workers: int
    batch_size: int
    images: int
    images_each: Sequence[int]
    only: Mapping[WorkRange, frozenset[int]] = field(default_factory=dict)
    bytes: int = 0
    announced: bool = False
    share: Share | None = None
    cell: int = 0
    compile: bool = False

    @property
    def counted(self) -> bool:
        """Whether it is known how many images there are."""
        return all(gap.stop != UNCOUNTED for gap in self.gaps)

    @property
    def needed(self) -> frozenset[int]:
        """The outputs that lack anything at all."""
        return frozenset(number for number, images in enumerate(self.images_each) if images)

    def lacking(self, work: WorkRange) -> Collection[int]:
        """The outputs that lack a range, in order."""
        first = first_batch(work, self.batch_size)
        return sorted(self.only[first]) if first in self.only else range(len(self.images_each))


def make_plan(
    inventory: Inventory,
    *done: Mapping[int, Sequence[tuple[int, int]]],
    ranks: int,
    workers: int,
    batch_size: int,
) -> Plan:
    """The missing positions, and where each rank begins with them.

    `done` holds, for each output, the committed [start, stop) runs of each shard. Batches start at multiples of the
    batch size from where a gap starts, so that the division into batches, and with it every output byte, is the same
    however work is shared. Each output gets the very batches that it would get alone; those in which outputs agree are
    read and decoded once.
    """
    if batch_size < 1:
        raise ConfigError(f"data.batch_size={batch_size}: give a number of images, 1 or more")
    sizes = Sizes(inventory.shards, inventory.announced)
    gaps, only, images_each = _gaps_of(inventory.targets, done, batch_size, sizes)
    weights = array("q", map(sizes.bytes, gaps))
    needed = array("q", (shard for shard, _ in groupby(gaps.shards)))
    return Plan(
        ShardsById(inventory.shards, needed),
        IntMap((id_, inventory.targets[id_]) for id_ in needed),
        gaps,
        share_out(weights, ranks),
        max(1, workers),
        batch_size,
        sum(map(sizes.images, gaps)),
        images_each,
        only,
        sum(weights),
        all(map(sizes.is_known, gaps)),
    )


def _gaps_of(
    targets: Mapping[int, int], done: Sequence[Mapping[int, Sequence[tuple[int, int]]]], batch_size: int, sizes: Sizes
) -> tuple[Gaps, Who, tuple[int, ...]]:
    """What outputs lack, as one list of gaps by shard; who lacks it; and how many images each of them lacks."""
    if len(done) == 1:
        gaps = Gaps(_missing(targets, done[0]))
        return gaps, {}, (sum(map(sizes.images, gaps)),)
    of_each = [{shard: [*own] for shard, own in groupby(_missing(targets, one), attrgetter("shard"))} for one in done]
    images = (sum(sizes.images(gap) for own in missing.values() for gap in own) for missing in of_each)
    shared, only = union(of_each, batch_size)
    return Gaps(shared), only, tuple(images)


def share_out(weights: Sequence[int], ranks: int) -> list[tuple[int, int]]:
    """[start, stop) of each rank's run of gaps: about equal sums of `weights`, which are bytes."""
    ends = list(accumulate(weights, initial=0))
    borders = [bisect_left(ends, rank * ends[-1] / ranks) for rank in range(ranks)] + [len(weights)]
    return list(pairwise(borders))


def _missing(targets: Mapping[int, int], done: Mapping[int, Sequence[tuple[int, int]]]) -> Iterator[WorkRange]:
    """What one output lacks, shard by shard."""
    for id_ in sorted(targets):
        yield from (WorkRange(id_, *gap) for gap in _gaps(done.get(id_, ()), targets[id_]))


def _gaps(done: Iterable[tuple[int, int]], target: int) -> Iterator[tuple[int, int]]:
    position = 0
    for start, stop in sorted(run for run in done if run[0] < run[1]):
        if position < min(start, target):
            yield position, min(start, target)
        position = max(position, stop)
    if position < target:
        yield position, target
