"""A Hugging Face dataset by name: its Parquet files, of one commit, fetched into the hub's cache as they are wanted.

A shard is a file of a commit, which never changes; the commit is in its path, so that a later run reads the same one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lora_clip.errors import DataError
from lora_clip.sources.base import Shard, numbered
from lora_clip.sources.hf_hub import Dataset, download, files_of, parse
from lora_clip.sources.parquet import difference, read_rows, scan
from lora_clip.types import UNCOUNTED, RawSample, WorkRange

KIND = "hf"


@dataclass(frozen=True)
class HfSource:
    """The dataset that `data.hf` names; `image_keys` names its column of images."""

    location: Any
    image_keys: tuple[str, ...] | None = None

    def shards(self, known: Sequence[Shard]) -> Iterator[Shard]:
        """The files of the dataset's commit, uncounted; of an earlier run's dataset, those of the commit it read.

        Raises ConfigError for what is no name, DataError where the hub and its cache do not have it.
        """
        wanted = parse(str(self.location))
        earlier = _commits(wanted, known)
        commits, sizes = files_of(wanted, earlier.get(wanted.revision or ""))
        if others := {commit for about in earlier.values() for commit in about.values()} - {*commits.values()}:
            raise DataError(
                f"data.hf={self.location} is commit {next(iter(commits.values()))[:12]} now, and this output holds "
                f"images of {min(others)[:12]}: type data.hf={wanted.name}@{min(others)}, or use another output_dir"
            )
        state = {"dataset": wanted.name, "revision": wanted.revision or "", "commits": commits}
        for shard_id, path, before in numbered(sizes, known):
            yield before or Shard(shard_id, KIND, path, UNCOUNTED, sizes[path], "", state=state)

    def count(self, shard: Shard) -> Shard:
        """The shard, fetched, and counted by its footer. Raises DataError where it cannot be fetched."""
        found = scan(shard.id, download(shard.path), self.image_keys)
        told = {name: value for name, value in found.state.items() if name != "stamp"}
        return replace(found, kind=KIND, path=shard.path, state={**shard.state, **told})

    def read(self, shard: Shard, work: WorkRange) -> Iterator[RawSample]:
        """The rows at the positions of `work`. Raises DataError where the file cannot be fetched or read."""
        return read_rows(shard, download(shard.path), work, None)

    def check(self, shard: Shard) -> str | None:
        """How the file in the cache differs from the one that was embedded; a commit's own files never change."""
        return difference(shard, scan(shard.id, download(shard.path, from_hub=False), self.image_keys))


def _commits(wanted: Dataset, known: Sequence[Shard]) -> dict[str, dict[str, str]]:
    """By revision as it was typed, the commits that earlier runs read of this dataset."""
    ours = (shard.state for shard in known if shard.kind == KIND and shard.state["dataset"] == wanted.name)
    return {state["revision"]: dict(state["commits"]) for state in ours}
