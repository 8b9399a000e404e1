"""Which files make up which shard: as an earlier run decided, or cut anew into runs of about the same size."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple, NoReturn

from lora_clip.errors import DataError
from lora_clip.pack.index import PackedShard, read_index
from lora_clip.pack.listing import ListedFile, Listing, Sample
from lora_clip.pack.report import contents
from lora_clip.pack.write import stored_size, tar_size

IMAGES_PER_SHARD = 1000
BYTES_PER_SHARD = 256_000_000
IMAGES_WORTH_A_SHARD = 50
MOST_SHARDS = 1_000_000


class Assignment(NamedTuple):
    """A shard and the files that make it up, in the order of the tar."""

    shard: PackedShard
    members: list[ListedFile]


def default_shards(images: int, size: int, cores: int) -> int:
    """About 1,000 images or 256 MB a shard, whichever is less, and one for every core that would find 50 images."""
    worth_reading = min(cores, images // IMAGES_WORTH_A_SHARD)
    return max(1, -(-images // IMAGES_PER_SHARD), -(-size // BYTES_PER_SHARD), worth_reading)


def split(sizes: Sequence[int], count: int) -> list[int]:
    """Where to cut a sequence into `count` non-empty runs of about the same sum: `count + 1` indices from 0 on."""
    ends = list(accumulate(sizes, initial=0))
    cuts = [0]
    for number in range(1, count):
        ideal = ends[-1] * number // count
        cut = bisect_left(ends, ideal)
        cut -= ends[cut] - ideal > ideal - ends[cut - 1] if cut else 0
        cuts.append(min(max(cut, cuts[-1] + 1), len(sizes) - count + number))
    return [*cuts, len(sizes)]


def resolve_shards(listing: Listing, shards_dir: Path, asked: int | None, cores: int) -> list[Assignment]:
    """The shards that an earlier run began, or new ones where there is no tar yet; DataError for another input."""
    recorded = read_index(shards_dir)
    present = {path.name for path in shards_dir.glob("*.tar")}
    if foreign := present - {shard.name for shard in recorded}:
        raise DataError(f"SHARDS {shards_dir} holds other tars, such as {min(foreign)!r}: name a new folder")
    cuts = list(accumulate((shard.samples for shard in recorded), initial=0))
    assignments = _assign(listing.samples, cuts if cuts[-1] >= len(listing.samples) else [*cuts, len(listing.samples)])
    now = [assignment.shard for assignment in assignments]
    if now == recorded and asked in (None, len(recorded)):
        return assignments
    if present:
        _refuse(shards_dir, recorded, now, asked)
    return _cut_anew(listing.samples, asked, cores)


def _refuse(shards_dir: Path, recorded: list[PackedShard], now: list[PackedShard], asked: int | None) -> NoReturn:
    then, remedy = contents(recorded), "name a new folder for SHARDS, or delete its .tar files, and type it again"
    if now == recorded:
        raise DataError(
            f"--shards {asked}: {shards_dir} was begun with {then}: leave --shards out to go on, or {remedy}"
        )
    old = next((old for old, new in zip(recorded, now, strict=False) if old != new), None)
    where = f"the first difference lies in {old.name}, from {old.first!r} on" if old else "the new ones sort last"
    today = contents(now, counted=False)
    raise DataError(f"IMAGES has changed since {shards_dir} was begun: then {then}; now {today}; {where}: {remedy}")


def _cut_anew(samples: list[Sample], asked: int | None, cores: int) -> list[Assignment]:
    if asked is not None and asked > len(samples):
        raise DataError(f"--shards {asked}: there are images for {len(samples):,} shards at most")
    sizes = [sum(map(stored_size, sample)) for sample in samples]
    count = asked or min(default_shards(len(samples), sum(sizes), cores), len(samples), MOST_SHARDS)
    return _assign(samples, split(sizes, count))


def _assign(samples: list[Sample], cuts: Sequence[int]) -> list[Assignment]:
    assignments = []
    for number, (start, stop) in enumerate(pairwise(cuts)):
        members = [member for sample in samples[start:stop] for member in sample]
        assignments.append(Assignment(_describe(number, members, len(samples[start:stop])), members))
    return assignments


def _describe(number: int, members: list[ListedFile], samples: int) -> PackedShard:
    digest = hashlib.sha256("".join(f"{path}\0{size}\0" for path, size in members).encode("utf-8", "surrogateescape"))
    suffixes = [member.path.rpartition(".")[2].lower() for member in members]
    captions, metadata = suffixes.count("txt"), suffixes.count("json")
    return PackedShard(
        f"{number:06d}.tar",
        samples,
        len(members) - captions - metadata,
        captions,
        metadata,
        tar_size(members),
        members[0].path if members else "",
        digest.hexdigest(),
    )
