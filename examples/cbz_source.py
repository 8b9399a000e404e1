"""Pages of comics in .cbz files: a source for `data.cbz`, which names one file or a folder of them."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_clip.errors import DataError
from lora_clip.sources.base import Shard, listing_entry, numbered
from lora_clip.sources.names import image_name, webdataset_extension
from lora_clip.types import RawSample, WorkRange

KIND = "cbz"
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError)
"""What `zipfile` raises for one member that is broken, encrypted, or packed by a method that it does not know."""


@dataclass(frozen=True)
class CbzSource:
    """A comic is a shard; its images are in the order of its table of contents, captions beside them."""

    location: str
    image_keys: tuple[str, ...] | None = None

    def shards(self, known: Sequence[Shard]) -> Iterator[Shard]:
        """The comics, sorted by path."""
        root = Path(self.location).expanduser().absolute()
        paths = sorted(root.rglob("*.cbz")) if root.is_dir() else [root]
        for shard_id, path, _ in numbered(map(str, paths), known):
            yield self._describe(shard_id, path)

    def read(self, shard: Shard, work: WorkRange) -> Iterator[RawSample]:
        """The images at the positions of `work`: a broken one is a damaged sample, not the end."""
        with _opened(shard.path) as file:
            images = self._images(file)[work.start : work.stop]
            for position, (key, info) in enumerate(images, start=work.start):
                path = f"{shard.path}/{info.filename}"
                try:
                    image = file.read(info)
                    extras = {name: file.read(f"{key}.{name}") for name in _extras(file, key)}
                except DAMAGED as error:
                    yield RawSample(shard.id, position, key, path, b"", damage=f"cannot be unpacked: {error}")
                    continue
                yield RawSample(shard.id, position, key, path, image, extras)

    def check(self, shard: Shard) -> str | None:
        """How the comic differs from what was embedded: by the names and sizes of its images."""
        now = self._describe(shard.id, shard.path)
        return None if now.digest == shard.digest else f"has {now.images} images now, or others; {shard.images} then"

    def _describe(self, shard_id: int, path: str) -> Shard:
        with _opened(path) as file:
            images = self._images(file)
            every = [info.filename for info in file.infolist() if image_name(info.filename)]
        names = [info.filename for _, info in images]
        sizes = [info.file_size for _, info in images]
        digest = hashlib.sha256(b"".join(map(listing_entry, names, sizes))).hexdigest()
        taken = Counter(map(webdataset_extension, names))
        left_out = Counter(map(webdataset_extension, every)) - taken
        return Shard(shard_id, KIND, path, len(images), sum(sizes), digest, taken, left_out)

    def _images(self, file: zipfile.ZipFile) -> list[tuple[str, zipfile.ZipInfo]]:
        """The images in order, each with its key."""
        named = ((image_name(info.filename, self.image_keys), info) for info in file.infolist())
        return [(name.key, info) for name, info in named if name]


def _opened(path: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _extras(file: zipfile.ZipFile, key: str) -> list[str]:
    return [extension for extension in ("txt", "json") if f"{key}.{extension}" in file.NameToInfo]
