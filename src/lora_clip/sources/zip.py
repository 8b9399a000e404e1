"""Images in zip files: members in the order of the table of contents, captions and metadata beside them by name."""

from __future__ import annotations

import hashlib
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lora_clip.errors import DataError
from lora_clip.io.range_file import RangeFile
from lora_clip.io.ranges import open_ranges
from lora_clip.sources.base import Shard, listing_entry, numbered
from lora_clip.sources.expand import expand
from lora_clip.sources.names import EXTRA_EXTENSIONS, image_name, webdataset_extension
from lora_clip.sources.parked import Parked
from lora_clip.sources.wanted import Wanted
from lora_clip.types import RawSample, WorkRange

KIND = "zip"
FILES = Wanted("data.zip", (".zip",), "zip file")
MOST_BYTES = 512 << 20
OPEN = Parked()


@dataclass(frozen=True)
class ZipSource:
    """Zip files named by `data.zip`: a folder, a path, a glob, a brace pattern, or a list of these."""

    patterns: Any
    image_keys: tuple[str, ...] | None = None

    def shards(self, known: Sequence[Shard]) -> Iterator[Shard]:
        """The zip files in input order; of each the table of contents is read when it is asked for."""
        for shard_id, path, earlier in numbered(expand(self.patterns, FILES), known):
            yield scan(shard_id, path, self.image_keys, earlier)

    def read(self, shard: Shard, work: WorkRange) -> Iterator[RawSample]:
        """The images at the positions of `work`: a broken one is a damaged sample.

        Raises DataError where the file cannot be read.
        """
        if "damage" in shard.state:
            damaged = range(work.start, work.stop)
            yield from (_damaged(shard, one, "", shard.path, shard.state["damage"]) for one in damaged)
            return
        place = (shard.path, shard.digest, self.image_keys)
        archive = OPEN.take(place) or _opened(shard, self.image_keys)
        try:
            for position in range(work.start, min(work.stop, len(archive.images))):
                yield archive.sample(shard, position)
        finally:
            OPEN.park(place, archive)

    def check(self, shard: Shard) -> str | None:
        """How the zip differs from the one that was embedded: by the names, sizes and checksums of its images."""
        now = scan(shard.id, shard.path, self.image_keys)
        same = now.digest == shard.digest
        return None if same else f"has {now.images} images now, or others; {shard.images} were embedded"


class _Archive:
    """An open zip with its images and their keys. Raises OSError or zipfile.BadZipFile."""

    def __init__(self, path: str, keys: Sequence[str] | None) -> None:
        self.path = path
        self.file = RangeFile(open_ranges(path))
        try:
            self.zip = zipfile.ZipFile(self.file)
        except BaseException as error:
            failure = self.file.failure
            self.file.close()
            if failure is not None or isinstance(error, zipfile.BadZipFile):
                raise failure or error from None
            raise zipfile.BadZipFile(str(error)) from error
        self.entries = [info for info in self.zip.infolist() if not info.is_dir()]
        named = ((image_name(info.filename, keys), info) for info in self.entries)
        self.images = [(name.key, info) for name, info in named if name]

    def close(self) -> None:
        self.zip.close()
        self.file.close()

    def sample(self, shard: Shard, position: int) -> RawSample:
        key, info = self.images[position]
        path = f"{shard.path}/{info.filename}"
        try:
            if info.file_size > MOST_BYTES:
                return _damaged(shard, position, key, path, f"larger than {MOST_BYTES >> 20} MiB")
            return RawSample(shard.id, position, key, path, self.zip.read(info), self._extras(key))
        except Exception as error:  # each method of packing has errors of its own for broken, encrypted or unknown data
            if self.file.failure is not None:
                raise DataError(f"cannot read shard {self.path}: {self.file.failure}") from error
            return _damaged(shard, position, key, path, f"cannot be unpacked: {error or type(error).__name__}")

    def _extras(self, key: str) -> dict[str, bytes]:
        beside = {name: self.zip.NameToInfo.get(f"{key}.{name}") for name in sorted(EXTRA_EXTENSIONS)}
        return {name: self.zip.read(info) for name, info in beside.items() if info and info.file_size <= MOST_BYTES}


def _damaged(shard: Shard, position: int, key: str, path: str, damage: str) -> RawSample:
    return RawSample(shard.id, position, key or str(position), path, b"", damage=damage)


def _opened(shard: Shard, keys: Sequence[str] | None) -> _Archive:
    try:
        return _Archive(shard.path, keys)
    except OSError as error:
        raise DataError(f"cannot read shard {shard.path}: {error.strerror or error}") from error
    except zipfile.BadZipFile as error:
        raise DataError(f"{shard.path} changed while it was read: {error}") from error


def scan(shard_id: int, path: str, keys: Sequence[str] | None, earlier: Shard | None = None) -> Shard:
    """A zip's shape from its table of contents; one without is a shard of one damaged image.

    Raises DataError where it cannot be opened.
    """
    try:
        archive = _Archive(path, keys)
    except OSError as error:
        raise DataError(f"cannot read shard {path}: {error.strerror or error}") from error
    except zipfile.BadZipFile as error:
        digest = hashlib.sha256(b"not a whole zip file").hexdigest()
        return Shard(shard_id, KIND, path, 1, 0, digest, state={"damage": f"not a whole zip file: {error}"})
    try:
        stamp = [*archive.file.ranges.stamp]
        return earlier if earlier and earlier.state.get("stamp") == stamp else _survey(shard_id, path, archive, stamp)
    finally:
        archive.close()


def _survey(shard_id: int, path: str, archive: _Archive, stamp: list[Any]) -> Shard:
    infos = [info for _, info in archive.images]
    entries = (listing_entry(f"{info.filename}\0{info.CRC}", info.file_size) for info in infos)
    digest = hashlib.sha256(b"".join(entries)).hexdigest()
    taken = Counter(webdataset_extension(info.filename) for info in infos)
    every = Counter(webdataset_extension(one.filename) for one in archive.entries if image_name(one.filename))
    size = sum(info.compress_size for info in infos)
    return Shard(shard_id, KIND, path, len(infos), size, digest, taken, every - taken, {"stamp": stamp})
