"""What a source of images is: it lists its shards once, and reads any run of positions of one.

A new source is one file beside `tars.py` and `folders.py`, one config in `conf/data/`, and one line in `open_source`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lora_clip.errors import ConfigError
from lora_clip.types import RawSample, WorkRange


@dataclass(frozen=True)
class Shard:
    """One input shard as it was found: `images` counts its positions, damaged places included.

    `digest` identifies its listing (names and sizes); `stamp` is the file's (size, mtime in ns), so that an unchanged
    file need not be scanned again. `extensions` and `left_out` count images by WebDataset extension, taken and not
    taken. `seek_points` are (position, byte offset) pairs where reading may start. `scattered` says that captions do
    not stand beside their images. `files` lists a folder shard's images, relative to `path`.
    """

    id: int
    path: str
    images: int
    bytes: int
    digest: str
    stamp: tuple[int, int] = (0, 0)
    extensions: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    seek_points: Sequence[tuple[int, int]] = ()
    scattered: bool = False
    files: Sequence[str] | None = None

    def to_json(self) -> dict[str, Any]:
        """The shard as plain JSON values."""
        return vars(self) | {"extensions": dict(self.extensions), "left_out": dict(self.left_out)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Shard:
        """The shard that `to_json` wrote."""
        pairs = tuple((position, offset) for position, offset in record.get("seek_points", record.get("landmarks", ())))
        size, mtime = record["stamp"]
        files = None if record["files"] is None else tuple(record["files"])
        known = {key: value for key, value in record.items() if key != "landmarks"}  # of format 1
        return cls(**{**known, "seek_points": pairs, "stamp": (size, mtime), "files": files})


class Source(Protocol):
    """Where images come from. Instances are sent to worker processes, so they hold configuration and nothing else."""

    def shards(self, known: Sequence[Shard]) -> Iterator[Shard]:
        """The input's shards in input order, each scanned when it is asked for.

        Shards in `known` (of an earlier run into the same output) keep their ids; new ones are numbered after them.
        """
        ...

    def read(self, shard: Shard, work: WorkRange) -> Iterator[RawSample]:
        """The images at the part's positions, in order, one RawSample each."""
        ...


def open_source(config: Mapping[str, Any]) -> Source:
    """The source that the `data` group of the configuration names.

    Raises ConfigError where none or several are named.
    """
    from lora_clip.sources.folder import FolderSource
    from lora_clip.sources.tar import TarSource

    shards, folder = config.get("shards"), config.get("folder")
    if (shards is None) == (folder is None):
        found = "neither" if shards is None else "both"
        raise ConfigError(
            f"{found} of data.shards and data.folder {'is' if shards is None else 'are'} set: "
            "type data=shards data.shards=/path/to/tars, or data=folder data.folder=/path/to/images"
        )
    image_keys = parse_image_key(config.get("image_key"))
    return TarSource(shards, image_keys) if shards is not None else FolderSource(str(folder), image_keys)


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
