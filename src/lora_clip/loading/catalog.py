"""The shards of a plan as workers look them up: from memory, or from the file where rank 0 wrote them down."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lora_clip.compact import IntMap
from lora_clip.errors import DataError
from lora_clip.sources.base import Shard, Source, counted
from lora_clip.types import UNCOUNTED

KEPT = 4
"""How many shards a worker remembers that it has counted: it reads one, and is asked about the one before."""


class RecordedShards(Mapping[int, Shard]):
    """Shards that stand in a file as JSON, a line each: names of millions of files are not sent to each rank."""

    def __init__(self, path: Path, offsets: Mapping[int, int]) -> None:
        self.path, self._offsets = path, offsets

    @classmethod
    def of(cls, path: Path) -> RecordedShards:
        """All shards of the file."""
        return cls(path, IntMap(_offsets(path)))

    def __getitem__(self, shard: int) -> Shard:
        try:
            with self.path.open("rb") as file:
                file.seek(self._offsets[shard])
                return Shard.from_json(json.loads(file.readline()))
        except FileNotFoundError as error:
            raise DataError(
                f"{self.path} is not there: all nodes of a job need one output_dir, on a file system that they share"
            ) from error

    def __iter__(self) -> Iterator[int]:
        return iter(self._offsets)

    def __len__(self) -> int:
        return len(self._offsets)


def _offsets(path: Path) -> Iterator[tuple[int, int]]:
    """Id and offset of each line."""
    at = 0
    with path.open("rb") as file:
        for line in file:
            yield int(json.loads(line)["id"]), at
            at += len(line)


class Catalog:
    """A worker's shards; those that nobody counted before are counted when they are asked for."""

    def __init__(self, source: Source, shards: Mapping[int, Shard]) -> None:
        self.source, self.shards = source, shards
        self._counted: dict[int, Shard] = {}
        self._listed_bytes: dict[int, int] = {}

    def __getitem__(self, shard: int) -> Shard:
        """A shard with its images counted. Raises DataError where it cannot be read."""
        if shard in self._counted:
            return self._counted[shard]
        found = self.shards[shard]
        return found if found.images != UNCOUNTED else self._count(found)

    def _count(self, shard: Shard) -> Shard:
        return self._keep(counted(self.source, shard))

    def learn(self, shard: Shard) -> None:
        """Take it from another job how many images a shard has."""
        self._counted.pop(shard.id, None)
        self._keep(shard)

    def _keep(self, found: Shard) -> Shard:
        self._counted[found.id] = found
        self._listed_bytes[found.id] = self.shards[found.id].bytes
        while len(self._counted) > KEPT:
            self._listed_bytes.pop(gone := next(iter(self._counted)))
            del self._counted[gone]
        return found

    def images(self, shard: int) -> int:
        """How many images a shard has. Raises DataError where it cannot be read."""
        return self[shard].images

    def part(self, shard: int, of_images: int) -> int:
        """The bytes of a shard as the plan has them, of which `of_images` were read: a file is more than its images."""
        if shard not in self._counted:
            return of_images
        return of_images * self._listed_bytes[shard] // max(1, self._counted[shard].bytes)

    def news(self, shard: int) -> Mapping[str, Any] | None:
        """What counting a shard told, as plain JSON; None where the plan knew it."""
        return self._counted[shard].to_json() if shard in self._counted else None
