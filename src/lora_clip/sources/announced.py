"""How many images other programs say that a tar holds, in files beside it: estimates, for nothing but estimates.

`index.json` is pack's, `sizes.json` WebDataset's ({"00000.tar": 1000}), `00000_stats.json` img2dataset's. Whoever wrote
them, a tar may have changed since: it stays uncounted, and what a worker finds in it is what counts.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from lora_clip.errors import LoraClipError
from lora_clip.io.addresses import is_remote
from lora_clip.io.ranges import open_ranges
from lora_clip.io.remote import was_listed
from lora_clip.sources.base import Shard
from lora_clip.sources.inventory import INDEX, WRITTEN_BY

Result = TypeVar("Result")
SIZES, STATS = "sizes.json", "_stats.json"
MOST_BYTES, MOST_STATS_BYTES = 64 << 20, 1 << 20
MOST_STATS = 10_000
"""So many `_stats.json` are read, one a shard: what the others hold is estimated by these."""
TOLD = 3
LEAST_BYTES = 512
"""Of an image in a tar: its header. Who announces more images than fit is not believed."""


class Announced:
    """What stands beside tars; each file is read once, and what cannot be read is told in `notes`.

    Of remote folders only what their listing showed is asked for. With an `image_key` pack's counts are of others too.
    """

    def __init__(self, image_keys: tuple[str, ...] | None = None) -> None:
        self.notes: list[str] = []
        self._readers = {SIZES: _sizes} if image_keys else {INDEX: _packed, SIZES: _sizes}
        self._folders: dict[str, tuple[frozenset[str], Mapping[str, int]]] = {}
        self._stats_read = 0

    def of(self, shard: Shard) -> int | None:
        """How many images a shard is said to have; None where nothing tells of it."""
        folder, _, name = shard.path.rpartition("/")
        if folder not in self._folders:
            self._folders[folder] = self._look(folder)
        stats, counts = self._folders[folder]
        said = counts.get(name)
        if said is None and name.removesuffix(".tar") + STATS in stats and self._stats_read < MOST_STATS:
            self._stats_read += 1
            said = self._read(f"{folder}/{name.removesuffix('.tar')}{STATS}", _successes, MOST_STATS_BYTES)
        return said if said is not None and said <= shard.bytes // LEAST_BYTES else None

    def _look(self, folder: str) -> tuple[frozenset[str], Mapping[str, int]]:
        """The names of the `_stats.json` in a folder, and what stands in its other files."""
        if is_remote(folder):
            there = {name for name in self._readers if was_listed(f"{folder}/{name}")}
        else:
            there = _names(folder)
        counts: dict[str, int] = {}
        for name in reversed([*self._readers]):  # pack's are of images, the others' of samples
            if name in there:
                counts |= self._read(f"{folder}/{name}", self._readers[name], MOST_BYTES) or {}
        return frozenset(name for name in there if name.endswith(STATS)), counts

    def _read(self, path: str, what: Callable[[Any], Result], most: int) -> Result | None:
        try:
            return what(json.loads(_bytes(path, most)))
        except (OSError, LoraClipError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            self._tell(f"{path} is ignored, it tells no numbers of images: {str(error)[:200]}")
            return None

    def _tell(self, note: str) -> None:
        """Of thousands of broken files the first few are told."""
        if len(self.notes) < TOLD:
            self.notes.append(note)
        elif len(self.notes) == TOLD:
            self.notes.append("other files beside the shards are ignored too")


def _names(folder: str) -> set[str]:
    try:
        return {name for name in os.listdir(folder or "/") if name.endswith((INDEX, SIZES, STATS))}  # noqa: PTH208
    except OSError:
        return set()


def _bytes(path: str, most: int) -> bytes:
    """A file of a limited length. Raises OSError, LoraClipError, ValueError."""
    if not is_remote(path) and not stat.S_ISREG(Path(path).stat().st_mode):
        raise ValueError("not a regular file")  # a pipe would make us wait for ever
    with open_ranges(path) as file:
        if file.size > most:
            raise ValueError(f"larger than {most >> 20} MiB")
        return file.read_at(0, file.size)


def _packed(content: Any) -> dict[str, int]:
    """Of pack's index.json; one of something else says nothing."""
    if not isinstance(content, dict) or content.get("written_by") != WRITTEN_BY:
        return {}
    return _whole({shard["name"]: shard["images"] for shard in content["shards"]})


def _sizes(content: Any) -> dict[str, int]:
    return _whole(content)


def _successes(content: Any) -> int:
    return _whole({"successes": content["successes"]})["successes"]


def _whole(announced: Mapping[Any, Any]) -> dict[str, int]:
    """Numbers of images by name, if all are whole. Raises ValueError for any other."""
    for name, said in announced.items():
        if not isinstance(name, str) or type(said) is not int or said < 0:
            raise ValueError(f"{name!r}: {str(said)[:50]}")
    return dict(announced)
