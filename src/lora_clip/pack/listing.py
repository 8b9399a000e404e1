"""What is to be packed: every image below a folder, its caption and json beside it, and what is left out and why."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from lora_clip.errors import DataError
from lora_clip.sources.names import extra_name, image_name
from lora_clip.sources.walk import walk

IN_SHARDS, OTHER = "images inside SHARDS", "other files"
ORPHAN, NOWHERE = "captions or json without an image", "broken links and special files"
LOOP, AGAIN = "links back to a folder that holds them", "folders that have another name here too"


class ListedFile(NamedTuple):
    """A file as it was listed: its path relative to IMAGES and its size in bytes."""

    path: str
    size: int


Sample = tuple[ListedFile, ...]
"""The files that share a key, an image first: they stay together in one shard."""


class Listing(NamedTuple):
    """What is to be packed, in order, and the paths that are not, by reason."""

    samples: list[Sample]
    left_out: dict[str, list[str]]


def list_images(images_dir: Path, shards_dir: Path) -> Listing:
    """The images below `images_dir` sorted by path, each with its caption and json, and what is not packed.

    Raises DataError where there is no image or a folder cannot be read.
    """
    left_out: dict[str, list[str]] = defaultdict(list)
    samples = _samples(sorted(_files(images_dir, shards_dir, left_out)), left_out)
    if not samples:
        seen = "; ".join(f"{len(paths):,} {reason}, such as {min(paths)!r}" for reason, paths in left_out.items())
        raise DataError(f"no image in {images_dir}: {seen or 'the folder is empty'}")
    return Listing(samples, dict(left_out))


def _samples(members: Iterable[ListedFile], left_out: dict[str, list[str]]) -> list[Sample]:
    images: dict[str, list[ListedFile]] = defaultdict(list)
    extras: dict[str, list[ListedFile]] = defaultdict(list)
    for member in members:
        if (image := image_name(member.path)) is not None:
            images[image.key].append(member)
        elif (extra := extra_name(member.path)) is not None:
            extras[extra[0]].append(member)
        else:
            left_out[OTHER].append(member.path)
    if orphans := [member.path for key, found in extras.items() if key not in images for member in found]:
        left_out[ORPHAN] = orphans
    return [(found[0], *extras.get(key, ()), *found[1:]) for key, found in images.items()]


def _files(images_dir: Path, shards_dir: Path, left_out: dict[str, list[str]]) -> Iterator[ListedFile]:
    """Every regular file that `walk` finds; images that really lie in SHARDS are not packed."""
    own = os.path.realpath(shards_dir) + "/"
    for entry in walk(images_dir, lambda path, loop: left_out[LOOP if loop else AGAIN].append(path)):
        status = entry.status()
        if status is None or not stat.S_ISREG(status.st_mode):
            left_out[NOWHERE].append(entry.path)
        elif not f"{entry.folder}/".startswith(own):
            yield ListedFile(entry.path, status.st_size)
        elif image_name(entry.path) is not None:
            left_out[IN_SHARDS].append(entry.path)
