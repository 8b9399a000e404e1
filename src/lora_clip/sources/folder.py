"""Images in a tree of files, cut into shards of a fixed number of files."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from lora_clip.errors import DataError
from lora_clip.sources.base import Shard, listing_entry, next_id
from lora_clip.sources.files import UnreadableError, read_file
from lora_clip.sources.names import EXTRA_EXTENSIONS, image_name, webdataset_extension
from lora_clip.sources.walk import walk
from lora_clip.types import RawSample, WorkRange

KIND = "folder"
IMAGES_PER_SHARD = 1000


@dataclass(frozen=True)
class FolderSource:
    """A tree of image files; captions and metadata are the `.txt` and `.json` files beside them."""

    folder: str
    image_keys: tuple[str, ...] | None = None

    def shards(self, known: Sequence[Shard]) -> Iterator[Shard]:
        """The shards of earlier runs as they were, then new files, sorted by path, a thousand a shard."""
        root = str(Path(self.folder).expanduser().absolute())
        if not Path(root).is_dir():
            raise DataError(f"data.folder={self.folder}: {'not a folder' if Path(root).exists() else 'no such folder'}")
        mine = [at for at, shard in enumerate(known) if (shard.kind, shard.path) == (KIND, root)]
        yield from (known[at] for at in mine)
        left_out: Counter[str] = Counter()
        fresh = _less([*self._images(root, left_out)], (known[at] for at in mine))
        fresh.sort(reverse=True)
        shard_id = next_id(known)
        while fresh:  # taken from the end, so that no name is held beside the shard that it went into
            files = fresh[: -IMAGES_PER_SHARD - 1 : -1]
            del fresh[-IMAGES_PER_SHARD:]
            yield self._shard(shard_id, root, files, left_out)
            shard_id, left_out = shard_id + 1, Counter()

    def _images(self, root: str, left_out: Counter[str]) -> Iterator[str]:
        """The names of the images; those that `data.image_key` leaves out are counted."""
        for name in (entry.path for entry in walk(root)):
            if image_name(name, self.image_keys) is not None:
                yield name
            elif image_name(name) is not None:
                left_out[webdataset_extension(name)] += 1

    def _shard(self, shard_id: int, root: str, files: list[str], left_out: Counter[str]) -> Shard:
        sizes = [_size(root, name) for name in files]
        digest = hashlib.sha256(b"".join(map(listing_entry, files, sizes))).hexdigest()
        extensions = Counter(webdataset_extension(name) for name in files)
        state = {"files": files}
        if absent := [name for name, size in zip(files, sizes, strict=True) if not size and _is_absent(root, name)]:
            state["absent"] = absent  # links that lead nowhere: rejected, and not to be missed later
        return Shard(shard_id, KIND, root, len(files), sum(sizes), digest, extensions, left_out, state)

    def read(self, shard: Shard, work: WorkRange) -> Iterator[RawSample]:
        """The files at the positions of `work`, with their captions and metadata.

        A file that is gone or not readable is a damaged sample; another I/O error is a DataError: run again.
        """
        for position in range(work.start, work.stop):
            name = shard.state["files"][position]
            named = image_name(name, self.image_keys)
            key = named.key if named else name
            path = f"{shard.path}/{name}"
            try:
                image = read_file(path)
            except UnreadableError as error:
                yield RawSample(shard.id, position, key, path, b"", damage=f"cannot be read: {error}")
                continue
            yield RawSample(shard.id, position, key, path, image, _extras(shard.path, key))

    def check(self, shard: Shard) -> str | None:
        """How many of the files that were embedded are gone."""
        there = set(shard.state["files"]).difference(shard.state.get("absent", ()))
        gone = sum(_is_absent(shard.path, name) for name in there)
        return f"has lost {gone} of {shard.images} files" if gone else None


def _less(names: list[str], known: Iterable[Shard]) -> list[str]:
    """The names that no known shard has, each held once; the list that was given is emptied."""
    first = next(shards := iter(known), None)
    if first is None:
        return names
    left = set(names)
    names.clear()
    for shard in chain([first], shards):
        left.difference_update(shard.state["files"])
    return [*left]


def _extras(root: str, key: str) -> dict[str, bytes]:
    extras = {}
    for extension in sorted(EXTRA_EXTENSIONS):
        try:
            extras[extension] = read_file(f"{root}/{key}.{extension}")
        except UnreadableError:
            continue
    return extras


def _is_absent(root: str, name: str) -> bool:
    return not Path(root, name).exists()


def _size(root: str, name: str) -> int:
    try:
        return os.stat(f"{root}/{name}").st_size  # noqa: PTH116 (millions of them)
    except OSError:
        return 0
