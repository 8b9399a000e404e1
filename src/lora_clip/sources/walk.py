"""The files below a folder: the only walk over directories, for images in a folder, for packing, for tars in a folder.

Linked folders are followed, and each real folder is entered once. All come in sorted order, so that a folder with two
names is always found under the same one; links that lead back to where they stand do no harm.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from lora_clip.errors import DataError


class Entry(NamedTuple):
    """What is no folder: its path relative to the root, the real path of the folder that holds it, and its name."""

    path: str
    folder: str
    name: str

    def status(self) -> os.stat_result | None:
        """Of what it leads to, or None for a link that leads nowhere. Raises DataError where that cannot be told."""
        try:
            return os.stat(f"{self.folder}/{self.name}")  # noqa: PTH116 (millions of them)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP):
                return None
            raise _unlisted(error) from error


def walk(root: Path | str, again: Callable[[str, bool], None] = lambda path, loop: None) -> Iterator[Entry]:
    """Everything below `root` that is no folder.

    `again` hears of each further name of a folder, and whether it is a link back to a folder that holds it.

    Raises DataError where a folder cannot be read: nothing of the input is dropped silently.
    """
    visited: set[str] = set()
    waiting = [("", os.path.realpath(root), "")]
    while waiting:
        path, real, holder = waiting.pop()
        if real in visited:
            again(path, _holds(real, holder))
            continue
        visited.add(real)
        prefix = path and f"{path}/"
        subfolders, names = _listed(real)
        yield from (Entry(prefix + name, real, name) for name in names)
        waiting += [(prefix + name, to, real) for name, to in reversed(subfolders)]


def _holds(folder: str, other: str) -> bool:
    return f"{other}/".startswith(f"{folder.rstrip('/')}/")


def _listed(folder: str) -> tuple[list[tuple[str, str]], list[str]]:
    """The folders in a folder with their real paths, and the names of all else, sorted.

    Of a million files in one folder nothing but the names is kept.
    """
    subfolders: list[tuple[str, str]] = []
    names: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for found in entries:
                if _is_folder(found):
                    subfolders.append((found.name, _real(found)))
                else:
                    names.append(found.name)
    except OSError as error:
        raise _unlisted(error) from error
    return sorted(subfolders), sorted(names)


def _is_folder(found: os.DirEntry[str]) -> bool:
    try:
        return found.is_dir()
    except OSError:  # a link that leads to itself, or to where we may not look
        return False


def _real(found: os.DirEntry[str]) -> str:
    return os.path.realpath(found.path) if found.is_symlink() else found.path


def _unlisted(error: OSError) -> DataError:
    return DataError(f"cannot list {error.filename!r}: {error.strerror}")
