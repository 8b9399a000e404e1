"""`index.json` in SHARDS: which shards an input was cut into, written before the first of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from lora_clip.errors import DataError
from lora_clip.io.atomic import replaced

INDEX = "index.json"
WRITTEN_BY = "lora_clip pack 1"


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


def write_index(shards_dir: Path, shards: list[PackedShard]) -> None:
    """Record what was decided, so that a later run goes on with it. Raises StorageError."""
    content = {"written_by": WRITTEN_BY, "shards": [shard._asdict() for shard in shards]}
    with replaced(shards_dir / INDEX) as file:
        file.write(json.dumps(content, indent=1).encode("ascii"))


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
