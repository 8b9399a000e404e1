"""What a source of images is, which sources there are, and what is known of each of their shards.

A new source is one file here and one line in `registry.py`: docs/extending.md shows it with an example that runs.
"""

from __future__ import annotations

import importlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import count
from typing import Any, Protocol, cast

from lora_clip.errors import ConfigError, DataError
from lora_clip.io.addresses import identities
from lora_clip.sources.earlier import upgraded
from lora_clip.sources.registry import SOURCES
from lora_clip.types import UNCOUNTED, RawSample, WorkRange


@dataclass(frozen=True)
class Shard:
    """One input shard as it was found: `images` counts its positions, damaged places included; `bytes` its images'.

    Of a shard that nobody has looked into yet `images` is UNCOUNTED, `bytes` the size of its file, `digest` empty.

    `kind` is the name of its source in `SOURCES`, and `state` what that source wants to know again: JSON values that
    nobody else looks into. `digest` identifies the listing (names and sizes). `extensions` and `left_out` count images
    by WebDataset extension, taken and not taken.
    """

    id: int
    kind: str
    path: str
    images: int
    bytes: int
    digest: str
    extensions: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The shard as plain JSON values."""
        images = None if self.images == UNCOUNTED else self.images
        return vars(self) | {
            "images": images, "extensions": dict(self.extensions), "left_out": dict(self.left_out)
        }  # fmt: skip

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Shard:
        """The shard that `to_json` wrote, in this version or in one before; keys that are not a shard's are passed by.

        Raises DataError where the record lacks something.
        """
        record = upgraded(record)
        try:
            values = {known.name: record[known.name] for known in fields(cls)}
            return cls(**values | ({"images": UNCOUNTED} if values["images"] is None else {}))
        except KeyError as error:
            raise DataError(f"the record of shard {record.get('id')} lacks {error}: use another output_dir") from error


class Source(Protocol):
    """Where images come from; made from what its `data.*` key says and the parsed `data.image_key`.

    Instances are sent to worker processes, so they hold configuration and nothing else.
    """

    def shards(self, known: Sequence[Shard]) -> Iterator[Shard]:
        """The input's shards in an order that stays; each is counted where that costs little, or else UNCOUNTED.

        Shards in `known` (of an earlier run into the same output) keep their ids; new ones are numbered after them:
        `numbered` does that for sources whose shards are files.
        """
        ...

    def read(self, shard: Shard, work: WorkRange) -> Iterator[RawSample]:
        """The images at the positions of `work`, in order, one RawSample each, damaged ones too.

        Raises DataError where the shard cannot be read, and another try may help.
        """
        ...

    def check(self, shard: Shard) -> str | None:
        """How the shard differs from what it was when it was embedded, as the end of a sentence; None if it does not.

        Raises DataError where it cannot be read.
        """
        ...


class CountingSource(Source, Protocol):
    """A source to which counting is work: it lists shards as UNCOUNTED, and counts one when a worker wants it."""

    def count(self, shard: Shard) -> Shard:
        """The shard, looked into. Raises DataError where it cannot be read."""
        ...


class Estimates(Protocol):
    """What is said of shards that nobody has counted; `notes` tells a user what of it cannot be read."""

    notes: list[str]

    def of(self, shard: Shard) -> int | None:
        """How many images a shard is said to have; None where nothing tells of it."""
        ...


class EstimatingSource(Source, Protocol):
    """A source beside whose shards may stand how many images they have: of use until they are counted, not instead."""

    def estimates(self) -> Estimates:
        """What is asked for each shard as it is listed."""
        ...


def counted(source: Source, shard: Shard) -> Shard:
    """A shard of the source with its images counted. Raises DataError where it cannot be read."""
    return shard if shard.images != UNCOUNTED else cast(CountingSource, source).count(shard)


def open_source(config: Mapping[str, Any]) -> Source:
    """The source that the `data` group of the configuration names.

    Raises ConfigError where none or several are named.
    """
    named = [kind for kind, source in SOURCES.items() if config.get(source.key) is not None]
    if len(named) != 1:
        offered = [SOURCES[kind] for kind in named or SOURCES]
        keys = [f"data.{source.key}" for source in offered]
        found = f"both of {' and '.join(keys)} are" if named else f"neither of {' and '.join(keys)} is"
        found = found if len(keys) == 2 else f"{len(named) or 'none'} of {', '.join(keys)} are"
        why = " (without data=…, the demo's shards are)" if "data.shards" in keys and named else ""
        how = ", or ".join(f"data={source.key} data.{source.key}={source.example}" for source in offered)
        raise ConfigError(f"{found} set{why}: type {how}")
    return _made(named[0], config[SOURCES[named[0]].key], parse_image_key(config.get("image_key")))


def source_of(shard: Shard, image_keys: tuple[str, ...] | None) -> Source:
    """The source that reads a shard of an earlier run. Raises DataError where there is none of its kind."""
    if shard.kind not in SOURCES:
        raise DataError(
            f"{shard.path} was read by a source {shard.kind!r}, which is not in lora_clip.sources.registry.SOURCES"
        )
    return _made(shard.kind, shard.path, image_keys)


def _made(kind: str, location: Any, image_keys: tuple[str, ...] | None) -> Source:
    module, _, name = SOURCES[kind].location.partition(":")
    return getattr(importlib.import_module(module), name)(location, image_keys)


def numbered(paths: Iterable[str], known: Sequence[Shard]) -> Iterator[tuple[int, str, Shard | None]]:
    """Id, path and the record of an earlier run of each file: first the known ones that are still there, then new.

    A file that is found under another name than then, by a link, is the known one.
    """
    ids = array("q")
    places: dict[str, int] = {}
    for shard in known:  # its records are not kept: each may hold much
        places[shard.path] = len(ids)
        ids.append(shard.id)
    present = dict.fromkeys(_as_known(paths, places))
    for at in sorted((places[path] for path in present if path in places), key=ids.__getitem__):
        yield ids[at], (earlier := known[at]).path, earlier
    fresh = count(max(ids, default=-1) + 1)
    yield from ((next(fresh), path, None) for path in present if path not in places)


def _as_known(paths: Iterable[str], known: Mapping[str, int]) -> Iterator[str]:
    """The paths, and the known ones in place of others that lead to the same files."""
    by_real = {real: path for path, real in identities(known) if real != path}
    for path, real in identities(paths):
        yield by_real.get(real) or (real if real in known else path)


def next_id(known: Sequence[Shard]) -> int:
    """The first id that no shard of an earlier run has."""
    return max((shard.id for shard in known), default=-1) + 1


def listing_entry(name: str, size: int) -> bytes:
    """What an image adds to the digest of its shard's listing."""
    return f"{name}\0{size}\0".encode("utf-8", "surrogateescape")


def parse_image_key(image_key: Any) -> tuple[str, ...] | None:
    """`data.image_key` as extensions: null -> None, `jpg` -> (`jpg`,), `jpg;png` or a list -> several."""
    if image_key is None:
        return None
    names = image_key.split(";") if isinstance(image_key, str) else [str(name) for name in image_key]
    keys = tuple(name.strip().lstrip(".").lower() for name in names)
    if not all(keys):
        raise ConfigError(f"data.image_key={image_key!r} names no extension: type jpg, jpg;png, or null for all images")
    return keys


def count_extensions(shards: Sequence[Shard]) -> tuple[Counter[str], Counter[str]]:
    """Images by WebDataset extension over all shards: those taken, and those that `data.image_key` leaves out."""
    taken: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for shard in shards:
        taken.update(shard.extensions)
        left_out.update(shard.left_out)
    return taken, left_out
