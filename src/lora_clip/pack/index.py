"""`index.json` in SHARDS: which shards an input was cut into, and what a job that reads them would have to scan for.

It is written before the first tar, so that a later run goes on with the same shards, and again after the last, with
the inventory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from lora_clip.errors import DataError
from lora_clip.io.atomic import write_text
from lora_clip.sources.inventory import INDEX, WRITTEN_BY, Note


class PackedShard(NamedTuple):
    """One tar as `index.json` records it; `bytes` is the tar's size, `digest` that of its paths and their sizes."""

    name: str
    samples: int
    images: int
    captions: int
    json: int
    bytes: int
    first: str
    digest: str


def write_index(shards_dir: Path, shards: list[PackedShard], notes: Mapping[str, Note] | None = None) -> None:
    """Record what was decided and, once the tars are there, what is in each of them. Raises StorageError."""
    content: dict[str, object] = {"written_by": WRITTEN_BY, "shards": [shard._asdict() for shard in shards]}
    if notes is not None:
        content["inventory"] = {shard.name: notes[shard.name] for shard in shards}
    write_text(shards_dir / INDEX, json.dumps(content, indent=1))


def read_index(shards_dir: Path) -> list[PackedShard]:
    """The shards that an earlier run decided on, or none; raises DataError for an index of something else."""
    path = shards_dir / INDEX
    try:
        content = json.loads(path.read_bytes())
        if content["written_by"] != WRITTEN_BY:
            raise ValueError(content["written_by"])
        return [PackedShard(**record) for record in content["shards"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} was not written by this command or is damaged: name a new folder") from error


def is_finished(shards_dir: Path, shard: PackedShard) -> bool:
    """Whether a shard needs no writing: its tar is there, of the size that was foreseen."""
    # A tar gets its name only when it is whole; its size guards against what others did to it since.
    path = shards_dir / shard.name
    return path.is_file() and path.stat().st_size == shard.bytes
