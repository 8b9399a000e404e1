"""Images in local tar shards, WebDataset style.

Members are read at their byte offsets, so that any worker can start in the middle of a tar. A damaged place costs one
rejected sample and reading goes on at the next header: `tarfile` alone (and WebDataset with it) ends silently there.
"""

from __future__ import annotations

import glob
import hashlib
import os
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, groupby
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lora_clip.errors import ConfigError, DataError
from lora_clip.sources.base import Shard
from lora_clip.sources.names import extra_name, image_name
from lora_clip.types import RawSample, WorkRange

SEEK_POINT_SPACING = 256
BLOCK = tarfile.BLOCKSIZE
MAGIC, MAGIC_OFFSET = b"ustar", 257
MOST_HEADER_BYTES, MOST_HEADER_READS = 1 << 20, 64
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}


class Member(NamedTuple):
    """A file in a tar: where its header starts and where its bytes lie; `damage` says why they cannot be read."""

    name: str
    header: int
    offset: int
    size: int
    damage: str | None = None


def members(file: BinaryIO, start: int = 0) -> Iterator[Member]:
    """The files of a tar from the header at byte `start` on, with one damaged Member for each unreadable stretch."""
    end = os.fstat(file.fileno()).st_size
    offset = start
    while offset < end:
        try:
            info, following = _header_at(file, offset)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            offset = _after_zeros(file, offset, end)  # the end mark, unless another archive was appended
            continue
        except (tarfile.TarError, ValueError, IndexError, OverflowError) as error:
            following = _next_header(file, offset + BLOCK, end)
            yield Member("", offset, offset, following - offset, _describe_damage(file, offset, following, error))
            offset = following
            continue
        if (member := _as_member(info, offset, end)) is not None:
            yield member
        offset = following


def _after_zeros(file: BinaryIO, offset: int, end: int) -> int:
    """The offset of the first block from `offset` on that is not all zeros, or `end`."""
    chunk_size = 2048 * BLOCK
    for base in range(offset, end, chunk_size):
        chunk = os.pread(file.fileno(), chunk_size, base)
        if rest := chunk.lstrip(b"\0"):
            return base + (len(chunk) - len(rest)) // BLOCK * BLOCK
    return end


class _HeaderFile:
    """A file that serves headers of a bounded length and number, so that no tar costs all memory or the stack."""

    def __init__(self, file: BinaryIO) -> None:
        self.tell = file.tell
        self._read = file.read
        self._bytes, self._reads = MOST_HEADER_BYTES, MOST_HEADER_READS

    def read(self, size: int) -> bytes:
        self._bytes -= size
        self._reads -= 1
        if size < 0 or self._bytes < 0 or self._reads < 0:
            raise tarfile.ReadError("extended headers too long or too many")
        return self._read(size)


class _Cursor(tarfile.TarFile):
    """A TarFile that only serves `TarInfo.fromtarfile`: opening it reads nothing."""

    def next(self) -> None:
        return None


def _header_at(file: BinaryIO, offset: int) -> tuple[tarfile.TarInfo, int]:
    """The member whose header (extended ones included) starts at `offset`, and the offset of the header after it."""
    file.seek(offset)
    served: Any = _HeaderFile(file)
    cursor = _Cursor(fileobj=served, mode="r", encoding="utf-8", errors="surrogateescape")
    info = tarfile.TarInfo.fromtarfile(cursor)
    if info.size < 0 or cursor.offset < info.offset_data:
        raise tarfile.ReadError("member of negative size")
    return info, cursor.offset


def _as_member(info: tarfile.TarInfo, header: int, end: int) -> Member | None:
    if info.isdir():
        return None
    damage = None
    if not info.name:
        damage = "the tar gives this file no name"
    elif not info.isreg() or info.issparse():
        damage = f"the tar holds a {_kind(info)} in place of the file's bytes"
    elif info.offset_data + info.size > end:
        damage = f"truncated tar: {info.size} bytes announced, {max(0, end - info.offset_data)} there"
    return Member(info.name, header, info.offset_data, info.size, damage)


def _kind(info: tarfile.TarInfo) -> str:
    if info.issparse():
        return "sparse file"
    return "hard link" if info.islnk() else "symbolic link" if info.issym() else "special file"


def _next_header(file: BinaryIO, offset: int, end: int) -> int:
    """The offset of the next block that looks like a header, or `end`."""
    chunk_size = 2048 * BLOCK
    for base in range(offset, end, chunk_size):
        chunk = os.pread(file.fileno(), chunk_size, base)
        found = chunk.find(MAGIC)
        while found >= 0:
            if found % BLOCK == MAGIC_OFFSET:
                return base + found - MAGIC_OFFSET
            found = chunk.find(MAGIC, found + 1)
    return end


def _describe_damage(file: BinaryIO, start: int, stop: int, error: Exception) -> str:
    head = os.pread(file.fileno(), 8, 0)
    compression = next((name for magic, name in COMPRESSED.items() if head.startswith(magic)), None)
    if start == 0 and compression:
        return f"not a plain tar but {compression} data: unpack it first"
    what = "not a tar archive" if start == 0 and not _looks_like_header(file, 0) else "damaged tar"
    return f"{what}: bytes {start} to {stop} cannot be read ({error})"


def _looks_like_header(file: BinaryIO, offset: int) -> bool:
    return os.pread(file.fileno(), len(MAGIC), offset + MAGIC_OFFSET) == MAGIC


@dataclass
class Group:
    """Consecutive members with one key: its images (damaged places among them) and its caption and metadata files."""

    key: str
    header: int
    images: list[tuple[Member, str]] = field(default_factory=list)
    extras: dict[str, Member] = field(default_factory=dict)


class _Role(NamedTuple):
    key: str
    kind: str
    member: Member
    extension: str


def _roles(found: Iterable[Member], keys: Sequence[str] | None, skipped: Callable[[str], None]) -> Iterator[_Role]:
    """What each member is to us; members that are nothing to us are dropped, images among them reported as skipped."""
    for member in found:
        if (image := image_name(member.name, keys)) is not None:
            yield _Role(image.key, "image", member, image.extension)
        elif (extra := extra_name(member.name)) is not None and member.damage is None:
            yield _Role(extra[0], "extra", member, extra[1])
        elif not member.name or (member.damage or "").startswith("truncated"):
            yield _Role(member.name, "image", member, "")
        elif (left_out := image_name(member.name)) is not None:
            skipped(left_out.extension)


def groups(
    found: Iterable[Member], keys: Sequence[str] | None = None, skipped: Callable[[str], None] = lambda extension: None
) -> Iterator[Group]:
    """Members gathered into runs of one key, in the order of the tar."""
    for key, run in groupby(_roles(found, keys, skipped), key=lambda role: role.key):
        group = None
        for role in run:
            group = group or Group(key, role.member.header)
            if role.kind == "image":
                group.images.append((role.member, role.extension))
            else:
                group.extras[role.extension] = role.member
        assert group is not None
        yield group


@dataclass(frozen=True)
class TarSource:
    """Local tars named by `data.shards`: a folder, a path, a glob, a brace pattern, or a list of these."""

    patterns: Any
    image_keys: tuple[str, ...] | None = None

    def shards(self, known: Sequence[Shard]) -> Iterator[Shard]:
        """The tars in input order, each scanned (headers only) when it is asked for."""
        paths = expand(self.patterns)
        by_path = {shard.path: shard for shard in known}
        fresh_ids = count(max((shard.id for shard in known), default=-1) + 1)
        for earlier in sorted((by_path[path] for path in paths if path in by_path), key=lambda shard: shard.id):
            yield scan(earlier.id, earlier.path, self.image_keys, earlier)
        for path in paths:
            if path not in by_path:
                yield scan(next(fresh_ids), path, self.image_keys)

    def read(self, shard: Shard, work: WorkRange) -> Iterator[RawSample]:
        """The images at the part's positions: their bytes, captions and metadata.

        Raises DataError where the file cannot be read.
        """
        try:
            with Path(shard.path).open("rb") as file:
                yield from self._read_open(file, shard, work)
        except OSError as error:
            raise _unreadable(shard.path, error) from error

    def _read_open(self, file: BinaryIO, shard: Shard, work: WorkRange) -> Iterator[RawSample]:
        position, offset = max(
            (mark for mark in shard.seek_points if mark[0] <= work.start), default=(0, 0), key=lambda mark: mark[0]
        )
        scattered = _index_extras(file) if shard.scattered else {}
        for group in groups(members(file, offset), self.image_keys):
            extras = {**scattered.get(group.key, {}), **group.extras}
            for member, _ in group.images:
                if position >= work.stop:
                    return
                if position >= work.start:
                    yield _sample(file, shard, position, group.key, member, extras)
                position += 1


def _sample(
    file: BinaryIO, shard: Shard, position: int, key: str, member: Member, extras: dict[str, Member]
) -> RawSample:
    path = f"{shard.path}/{member.name}"
    if member.damage is not None:
        return RawSample(shard.id, position, key, path, b"", damage=member.damage)
    texts = {extension: _bytes(file, extra) for extension, extra in extras.items()}
    return RawSample(shard.id, position, key, path, _bytes(file, member), texts)


def _bytes(file: BinaryIO, member: Member) -> bytes:
    return os.pread(file.fileno(), member.size, member.offset)


def _index_extras(file: BinaryIO) -> dict[str, dict[str, Member]]:
    index: dict[str, dict[str, Member]] = defaultdict(dict)
    for member in members(file):
        if (name := extra_name(member.name)) is not None and member.damage is None:
            index[name[0]][name[1]] = member
    return index


def scan(shard_id: int, path: str, keys: Sequence[str] | None, earlier: Shard | None = None) -> Shard:
    """A tar's shape from its headers alone; an unchanged file that was scanned `earlier` is not read again.

    Raises DataError where the file cannot be opened.
    """
    try:
        status = Path(path).stat()
        stamp = (status.st_size, status.st_mtime_ns)
        if earlier is not None and earlier.stamp == stamp:
            return earlier
        with Path(path).open("rb") as file:
            return _scan_open(shard_id, path, file, keys, stamp)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: OSError) -> DataError:
    return DataError(f"cannot read shard {path}: {error.strerror or error}")


def _scan_open(shard_id: int, path: str, file: BinaryIO, keys: Sequence[str] | None, stamp: tuple[int, int]) -> Shard:
    survey = _Survey()
    for group in groups(members(file), keys, survey.leave_out):
        survey.add(group)
    return survey.shard(shard_id, path, stamp)


@dataclass
class _Survey:
    """What a scan has found so far; `captioned` says of each key whether a caption or metadata was seen with it."""

    images: int = 0
    bytes: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    taken: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    seek_points: list[tuple[int, int]] = field(default_factory=list)
    captioned: dict[str, bool] = field(default_factory=dict)
    scattered: bool = False

    def leave_out(self, extension: str) -> None:
        self.left_out[extension] += 1

    def add(self, group: Group) -> None:
        again = group.key in self.captioned
        self.captioned[group.key] = self.captioned.get(group.key, False) or bool(group.extras)
        self.scattered |= not group.images or (again and self.captioned[group.key])
        if group.images and self.images // SEEK_POINT_SPACING >= len(self.seek_points):
            self.seek_points.append((self.images, group.header))
        for member, extension in group.images:
            self._add_image(member, extension)

    def _add_image(self, member: Member, extension: str) -> None:
        self.images += 1
        self.digest.update(f"{member.name}\0{member.size}\0".encode("utf-8", "surrogateescape"))
        if member.damage is None:
            self.taken[extension] += 1
            self.bytes += member.size

    def shard(self, shard_id: int, path: str, stamp: tuple[int, int]) -> Shard:
        marks = tuple(self.seek_points)
        digest = self.digest.hexdigest()
        counts = (self.images, self.bytes, digest, stamp, self.taken, self.left_out)
        return Shard(shard_id, path, *counts, marks, self.scattered)


def expand(patterns: Any) -> list[str]:
    """The absolute tar paths that `data.shards` names: folders and globs sorted, lists and braces as given.

    A file is named once, also where two spellings or a link lead to it: nothing is embedded twice.

    Raises DataError where a pattern matches nothing, ConfigError for a scheme that is not read.
    """
    given = list(patterns) if isinstance(patterns, Sequence) and not isinstance(patterns, str) else [patterns]
    if not given:
        raise ConfigError("data.shards is an empty list: name a folder of tars, a path, a glob or a brace pattern")
    files: dict[str, str] = {}
    for path in (path for pattern in given for path in _expand_one(str(pattern))):
        files.setdefault(os.path.realpath(path), str(Path(path).absolute()))
    return list(files.values())


def _expand_one(pattern: str) -> list[str]:
    pattern = _local(pattern)
    if _exists(pattern) and Path(pattern).is_dir():
        return _tars_below(pattern)
    if _exists(pattern):
        return [pattern]
    from webdataset.shardlists import expand_urls

    try:
        urls = expand_urls(pattern)
    except ValueError as error:
        raise ConfigError(f"data.shards={pattern}: {error}") from error
    expanded = [path for url in urls for path in (_glob(url) if glob.has_magic(url) else [url])]
    missing = [path for path in expanded if not _exists(path)]
    if missing:
        more = f" and {len(missing) - 1} more of the {len(expanded)} it names" if len(missing) > 1 else ""
        raise DataError(f"data.shards={pattern}: no such file: {missing[0]}{more}")
    return expanded


def _exists(path: str) -> bool:
    """Whether there is such a file; a brace pattern can be longer than a file's name may be."""
    try:
        return Path(path).exists()
    except OSError:
        return False


def _glob(pattern: str) -> list[str]:
    found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (takes absolute patterns)
    if not found:
        raise DataError(f"data.shards={pattern} matches no file")
    return [path for name in found for path in (_tars_below(name) if Path(name).is_dir() else [name])]


def _tars_below(folder: str) -> list[str]:
    found = sorted(str(path) for path in Path(folder).rglob("*.tar") if path.is_file() or path.is_symlink())
    if not found:
        raise DataError(
            f"data.shards={folder} is a folder without a .tar file: "
            f"for a folder of images type data=folder data.folder={folder}"
        )
    return found


def _local(pattern: str) -> str:
    """The pattern as a local path. Raises ConfigError for pipes (never executed) and remote addresses."""
    if pattern.startswith("file://"):
        return pattern.removeprefix("file://")
    if pattern.startswith("pipe:"):
        raise ConfigError(f"data.shards={pattern}: pipe: runs a command and is not allowed; name a local tar")
    if "://" in pattern:
        raise ConfigError(f"data.shards={pattern}: remote shards are not read yet; copy them to a local folder first")
    return str(Path(pattern).expanduser())
