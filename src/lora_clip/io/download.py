"""Folders in buckets as local ones: what is loaded by its path, such as a model, is copied once for each version."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

from lora_clip.errors import ConfigError
from lora_clip.io import buckets
from lora_clip.io.addresses import redacted, scheme_of
from lora_clip.io.ranges import open_ranges
from lora_clip.io.retry import persist
from lora_clip.io.stamps import Stamp

COPIED_AT_ONCE = 8 << 20


def cache_folder() -> Path:
    """Where copies are kept, as the XDG rules have it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lora_clip"


def local_copy(address: str, patterns: Sequence[str]) -> Path:
    """A local folder with the files of a remote one whose names match one of the patterns.

    It is complete from the moment it is there; another version of any file makes another folder. Raises OSError where
    the files cannot be had, ConfigError for what cannot be listed.
    """
    address = address.rstrip("/")
    found = persist(lambda: _listed(address, patterns))
    if not found:
        raise FileNotFoundError(errno.ENOENT, "no such folder, or none of the files that are looked for in it")
    version = hashlib.sha256(repr((address, sorted(found.items()))).encode()).hexdigest()[:32]
    folder = cache_folder() / version
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder.with_suffix(".lock")):  # the ranks of a machine download once
            if not folder.is_dir():
                _copy(address, found, folder)
    return folder


def _listed(address: str, patterns: Sequence[str]) -> Mapping[str, Stamp]:
    if scheme_of(address) not in buckets.SCHEMES:
        known = ", ".join(f"{name}://" for name in buckets.SCHEMES)
        raise ConfigError(f"{redacted(address)}: a folder behind {scheme_of(address)}:// cannot be listed; {known} can")
    files = buckets.list_folder(address)
    names = {file.rpartition("/")[2]: stamp for file, stamp in files.items() if file.rpartition("/")[0] == address}
    return {name: stamp for name, stamp in names.items() if any(fnmatch(name, pattern) for pattern in patterns)}


def _copy(address: str, files: Mapping[str, Stamp], folder: Path) -> None:
    """Into a folder beside it first; where another machine was quicker, its copy is as good."""
    beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix="incomplete-"))
    try:
        for name, stamp in files.items():
            _copy_file(f"{address}/{name}", stamp, beside / name)
        try:
            beside.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _copy_file(address: str, stamp: Stamp, target: Path) -> None:
    with open_ranges(address, stamp) as file, target.open("wb") as copy:
        for offset in range(0, file.size, COPIED_AT_ONCE):
            copy.write(file.read_at(offset, COPIED_AT_ONCE))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock that other processes of this machine wait for, where the file system has locks."""
    with path.open("w") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
