"""Images in a tree of files, cut into shards of a fixed number of files."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from lora_clip.batch import Part, RawSample
from lora_clip.data.names import EXTRA_EXTENSIONS, image_name, webdataset_extension
from lora_clip.data.sources import Shard
from lora_clip.errors import DataError

IMAGES_PER_SHARD = 1000


@dataclass(frozen=True)
class FolderSource:
    """A tree of image files; captions and metadata are the `.txt` and `.json` files beside them."""

    folder: str
    image_keys: tuple[str, ...] | None = None

    def shards(self, known: Sequence[Shard]) -> Iterator[Shard]:
        """The shards of earlier runs as they were, then new files, sorted by path, a thousand a shard."""
        root = str(Path(self.folder).expanduser())
        if not Path(root).is_dir():
            raise DataError(f"data.folder={self.folder}: {'not a folder' if Path(root).exists() else 'no such folder'}")
        mine = [shard for shard in known if shard.path == root]
        yield from mine
        seen = {name for shard in mine for name in shard.files or ()}
        taken, left_out = self._images(root)
        fresh = iter(sorted(set(taken) - seen))
        shard_id = max((shard.id for shard in known), default=-1) + 1
        while files := tuple(islice(fresh, IMAGES_PER_SHARD)):
            yield self._shard(shard_id, root, files, left_out)
            shard_id, left_out = shard_id + 1, Counter()

    def _images(self, root: str) -> tuple[list[str], Counter[str]]:
        taken: list[str] = []
        left_out: Counter[str] = Counter()
        for name in walk(root):
            if image_name(name, self.image_keys) is not None:
                taken.append(name)
            elif image_name(name) is not None:
                left_out[webdataset_extension(name)] += 1
        return taken, left_out

    def _shard(self, shard_id: int, root: str, files: Sequence[str], left_out: Counter[str]) -> Shard:
        sizes = [_size(root, name) for name in files]
        listing = "".join(f"{name}\0{size}\0" for name, size in zip(files, sizes, strict=True))
        digest = hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()
        extensions = Counter(webdataset_extension(name) for name in files)
        return Shard(
            shard_id, root, len(files), sum(sizes), digest, extensions=extensions, left_out=left_out, files=files
        )

    def read(self, shard: Shard, part: Part) -> Iterator[RawSample]:
        """The files at the part's positions, with their captions and metadata.

        A file that is gone or not readable is a damaged sample; other I/O errors end the run, to be tried again.
        """
        assert shard.files is not None
        for position in range(part.start, part.stop):
            name = shard.files[position]
            image = image_name(name, self.image_keys)
            key = image.key if image else name
            path = f"{shard.path}/{name}"
            try:
                yield RawSample(shard.id, position, key, path, Path(path).read_bytes(), _extras(shard.path, key))
            except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
                yield RawSample(shard.id, position, key, path, b"", damage=f"cannot be read: {error.strerror}")


def _extras(root: str, key: str) -> dict[str, bytes]:
    extras = {}
    for extension in sorted(EXTRA_EXTENSIONS):
        try:
            extras[extension] = Path(f"{root}/{key}.{extension}").read_bytes()
        except OSError:
            continue
    return extras


def _size(root: str, name: str) -> int:
    try:
        return Path(root, name).stat().st_size
    except OSError:
        return 0


def walk(root: str) -> Iterator[str]:
    """The paths of all files below `root`, relative to it; linked folders are followed, each real folder once."""
    visited: set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        relative = os.path.relpath(folder, root)
        prefix = "" if relative == "." else f"{relative}/"
        yield from (prefix + name for name in names)
