"""Images in tar shards, WebDataset style.

Members are read at their byte offsets, so that any worker can start in the middle of a tar; a damaged place costs one
rejected sample.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Self

from lora_clip.errors import DataError
from lora_clip.io.addresses import is_remote
from lora_clip.io.ranges import RangeReader, open_ranges
from lora_clip.io.retry import words
from lora_clip.io.stamps import Stamp
from lora_clip.sources import seek_points
from lora_clip.sources.announced import Announced
from lora_clip.sources.base import Shard, listing_entry, numbered
from lora_clip.sources.expand import as_list, expand
from lora_clip.sources.expand_remote import remember_secrets
from lora_clip.sources.inventory import PackNotes
from lora_clip.sources.names import extra_name, image_name
from lora_clip.sources.tar_headers import Member, members
from lora_clip.types import UNCOUNTED, RawSample, WorkRange

KIND = "tar"
SEEK_POINT_SPACING = 256


@dataclass(frozen=True)
class TarState:
    """What is kept of a scanned tar besides its counts.

    An unchanged `stamp` saves scanning again. `seek_points` say where reading may start, as a text of that module.
    `scattered` says that captions do not stand beside their images.
    """

    stamp: Stamp
    seek_points: str = ""
    scattered: bool = False

    def to_json(self) -> dict[str, Any]:
        """The state as plain JSON values."""
        return {"stamp": [*self.stamp], "seek_points": self.seek_points, "scattered": self.scattered}

    @classmethod
    def of(cls, shard: Shard) -> Self:
        """The state of a shard that `scan` made."""
        size, changed = shard.state["stamp"]
        return cls((size, changed), shard.state["seek_points"], shard.state["scattered"])


@dataclass
class Group:
    """Consecutive members with one key: its images (damaged places among them) and its caption and metadata files."""

    key: str
    header: int
    images: list[tuple[Member, str]] = field(default_factory=list)
    extras: dict[str, Member] = field(default_factory=dict)


class _Role(NamedTuple):
    key: str
    kind: str
    member: Member
    extension: str


def _roles(found: Iterable[Member], keys: Sequence[str] | None, skipped: Callable[[str], None]) -> Iterator[_Role]:
    """What each member is to us; members that are nothing to us are dropped, images among them reported as skipped."""
    for member in found:
        if (image := image_name(member.name, keys)) is not None:
            yield _Role(image.key, "image", member, image.extension)
        elif (extra := extra_name(member.name)) is not None and member.damage is None:
            yield _Role(extra[0], "extra", member, extra[1])
        elif not member.name or (member.damage or "").startswith("truncated"):
            yield _Role(member.name, "image", member, "")
        elif (left_out := image_name(member.name)) is not None:
            skipped(left_out.extension)


def groups(
    found: Iterable[Member], keys: Sequence[str] | None = None, skipped: Callable[[str], None] = lambda extension: None
) -> Iterator[Group]:
    """Members gathered into runs of one key, in the order of the tar."""
    for key, run in groupby(_roles(found, keys, skipped), key=lambda role: role.key):
        group = None
        for role in run:
            group = group or Group(key, role.member.header)
            if role.kind == "image":
                group.images.append((role.member, role.extension))
            else:
                group.extras[role.extension] = role.member
        assert group is not None
        yield group


@dataclass(frozen=True)
class TarSource:
    """Tars named by `data.shards`: a folder, a path, a glob, a brace pattern, or a list of these."""

    patterns: Any
    image_keys: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        remember_secrets(as_list(self.patterns))

    def shards(self, known: Sequence[Shard]) -> Iterator[Shard]:
        """The tars in input order, counted where an earlier run or `pack` has done that; nothing is read of the others.

        A tar that an earlier run counted and that was touched since is scanned, which tells whether it is the same.
        """
        packed = PackNotes()
        for shard_id, path, earlier in numbered(expand(self.patterns), known):
            if earlier is not None and earlier.images != UNCOUNTED:
                yield scan(shard_id, path, self.image_keys, earlier)
                continue
            noted = None if self.image_keys or is_remote(path) else packed.shard(shard_id, Path(path))
            yield noted or _listed(shard_id, path)

    def estimates(self) -> Announced:
        """What pack, WebDataset or img2dataset left beside the tars."""
        return Announced(self.image_keys)

    def count(self, shard: Shard) -> Shard:
        """The tar, its headers scanned. Raises DataError where it cannot be read, or is not what was listed."""
        found = scan(shard.id, shard.path, self.image_keys, listed=TarState.of(shard).stamp)
        if TarState.of(found).stamp != TarState.of(shard).stamp:
            raise DataError(f"{shard.path} was written to since this job began: type the same command again")
        return found

    def read(self, shard: Shard, work: WorkRange) -> Iterator[RawSample]:
        """The images at the positions of `work`: their bytes, captions and metadata.

        Raises DataError where the file cannot be read.
        """
        try:
            with open_ranges(shard.path, TarState.of(shard).stamp) as file:
                yield from self._read_open(file, shard, work)
        except OSError as error:
            raise _unreadable(shard.path, error) from error

    def _read_open(self, file: RangeReader, shard: Shard, work: WorkRange) -> Iterator[RawSample]:
        state = TarState.of(shard)
        position, offset = seek_points.last_before(state.seek_points, work.start)
        scattered = _index_extras(file) if state.scattered else {}
        for group in groups(members(file, offset), self.image_keys):
            extras = {**scattered.get(group.key, {}), **group.extras}
            for member, _ in group.images:
                if position >= work.stop:
                    return
                if position >= work.start:
                    yield _sample(file, shard, position, group.key, member, extras)
                position += 1

    def check(self, shard: Shard) -> str | None:
        """How the tar's images differ from those that were embedded: by their names and sizes.

        A remote one is not downloaded for this: its ETag or version says more.
        """
        versioned = is_remote(shard.path) and TarState.of(shard).stamp[1]
        now = scan(shard.id, shard.path, self.image_keys, shard if versioned else None)
        same = now.digest == shard.digest
        return None if same else f"has {now.images} images now, or others; {shard.images} were embedded"


def _sample(
    file: RangeReader, shard: Shard, position: int, key: str, member: Member, extras: Mapping[str, Member]
) -> RawSample:
    path = f"{shard.path}/{member.name}"
    if member.damage is not None:
        return RawSample(shard.id, position, key, path, b"", damage=member.damage)
    texts = {extension: _bytes(file, extra) for extension, extra in extras.items()}
    return RawSample(shard.id, position, key, path, _bytes(file, member), texts)


def _bytes(file: RangeReader, member: Member) -> bytes:
    return file.read_at(member.offset, member.size)


def _index_extras(file: RangeReader) -> dict[str, dict[str, Member]]:
    index: dict[str, dict[str, Member]] = defaultdict(dict)
    for member in members(file):
        if (name := extra_name(member.name)) is not None and member.damage is None:
            index[name[0]][name[1]] = member
    return index


def _listed(shard_id: int, path: str) -> Shard:
    """A tar of which only its size is known. Raises DataError where the file cannot be opened."""
    try:
        with open_ranges(path) as file:
            return Shard(shard_id, KIND, path, UNCOUNTED, file.size, "", state=TarState(file.stamp).to_json())
    except OSError as error:
        raise _unreadable(path, error) from error


def scan(
    shard_id: int,
    path: str,
    keys: Sequence[str] | None,
    earlier: Shard | None = None,
    listed: Stamp | None = None,
) -> Shard:
    """A tar's shape from its headers alone; an unchanged file that was scanned `earlier` is not read again.

    Raises DataError where the file cannot be opened.
    """
    try:
        with open_ranges(path, listed) as file:
            if earlier is not None and TarState.of(earlier).stamp == file.stamp:
                return earlier
            survey = _Survey()
            if is_remote(path):  # its version is a part of what it is
                survey.digest.update(str(file.stamp[1]).encode())
            for group in groups(members(file), keys, survey.leave_out):
                survey.add(group)
            return survey.shard(shard_id, path, file.stamp)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: OSError) -> DataError:
    return DataError(f"cannot read shard {path}: {words(error)}")


@dataclass
class _Survey:
    """What a scan has found so far; `captioned` says of each key whether a caption or metadata was seen with it."""

    images: int = 0
    bytes: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    taken: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    seek_points: list[tuple[int, int]] = field(default_factory=list)
    captioned: dict[str, bool] = field(default_factory=dict)
    scattered: bool = False

    def leave_out(self, extension: str) -> None:
        self.left_out[extension] += 1

    def add(self, group: Group) -> None:
        again = group.key in self.captioned
        self.captioned[group.key] = self.captioned.get(group.key, False) or bool(group.extras)
        self.scattered |= not group.images or (again and self.captioned[group.key])
        if group.images and self.images // SEEK_POINT_SPACING >= len(self.seek_points):
            self.seek_points.append((self.images, group.header))
        for member, extension in group.images:
            self._add_image(member, extension)

    def _add_image(self, member: Member, extension: str) -> None:
        self.images += 1
        self.digest.update(listing_entry(member.name, member.size))
        if member.damage is None:
            self.taken[extension] += 1
            self.bytes += member.size

    def shard(self, shard_id: int, path: str, stamp: Stamp) -> Shard:
        state = TarState(stamp, seek_points.text_of(self.seek_points), self.scattered)
        counts = (self.images, self.bytes, self.digest.hexdigest(), self.taken, self.left_out)
        return Shard(shard_id, KIND, path, *counts, state.to_json())
