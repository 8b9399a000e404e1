"""Images in a tree of files, cut into shards of a fixed number of files."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
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
        mine = [shard for shard in known if (shard.kind, shard.path) == (KIND, root)]
        yield from mine
        seen = {name for shard in mine for name in shard.state["files"]}
        taken, left_out = self._images(root)
        fresh = iter(sorted(set(taken) - seen))
        shard_id = next_id(known)
        while files := tuple(islice(fresh, IMAGES_PER_SHARD)):
            yield self._shard(shard_id, root, files, left_out)
            shard_id, left_out = shard_id + 1, Counter()

    def _images(self, root: str) -> tuple[list[str], Counter[str]]:
        taken: list[str] = []
        left_out: Counter[str] = Counter()
        for name in (entry.path for entry in walk(root)):
            if image_name(name, self.image_keys) is not None:
                taken.append(name)
            elif image_name(name) is not None:
                left_out[webdataset_extension(name)] += 1
        return taken, left_out

    def _shard(self, shard_id: int, root: str, files: Sequence[str], left_out: Counter[str]) -> Shard:
        sizes = [_size(root, name) for name in files]
        digest = hashlib.sha256(b"".join(map(listing_entry, files, sizes))).hexdigest()
        extensions = Counter(webdataset_extension(name) for name in files)
        state = {"files": [*files]}
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
        gone = sum(not Path(shard.path, name).exists() for name in shard.state["files"])
        return f"has lost {gone} of {shard.images} files" if gone else None


def _extras(root: str, key: str) -> dict[str, bytes]:
    extras = {}
    for extension in sorted(EXTRA_EXTENSIONS):
        try:
            extras[extension] = read_file(f"{root}/{key}.{extension}")
        except UnreadableError:
            continue
    return extras


def _size(root: str, name: str) -> int:
    try:
        return Path(root, name).stat().st_size
    except OSError:
        return 0
