"""Which files a key such as `data.shards` names: folders, paths, addresses, globs, brace patterns, lists of these."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_clip.errors import ConfigError, DataError
from lora_clip.io.addresses import identities, is_remote
from lora_clip.sources.expand_remote import expand_braces, expand_remote
from lora_clip.sources.walk import Entry, walk
from lora_clip.sources.wanted import TARS, Wanted


def expand(patterns: Any, wanted: Wanted = TARS) -> list[str]:
    """The absolute paths and the addresses that a key such as `data.shards` names.

    Folders and globs are sorted, lists and braces as given. Addresses come without their secrets. A file is named once,
    also where two spellings or a link lead to it: nothing is embedded twice.

    Raises DataError where a pattern matches nothing, ConfigError for a scheme that is not read.
    """
    given = as_list(patterns)
    if not given:
        raise ConfigError(
            f"{wanted.key} is an empty list: name a folder of {wanted.what}s, a path, a glob or a brace pattern"
        )
    there = dict(expand_remote([pattern for pattern in given if is_remote(pattern)], wanted))
    files: dict[str, str] = {}
    found = (path for pattern in given for path in there.get(pattern) or _expand_one(pattern, wanted))
    for path, real in identities(found):
        path = path if is_remote(path) else _absolute(path)
        files.setdefault(real if real != path else path, path)  # one text for both, where they are the same
    return list(files.values())


def _absolute(path: str) -> str:
    """The path from the root on; pathlib takes longer than all else of listing a hundred thousand."""
    return path if path.startswith("/") and os.path.normpath(path) == path else str(Path(path).absolute())


def as_list(patterns: Any) -> list[str]:
    """What such a key says, as a list of patterns."""
    many = isinstance(patterns, Sequence) and not isinstance(patterns, str)
    return [str(pattern) for pattern in (patterns if many else [patterns])]


def _expand_one(pattern: str, wanted: Wanted) -> list[str]:
    pattern = _local(pattern, wanted)
    if _exists(pattern) and Path(pattern).is_dir():
        return _files_below(pattern, wanted)
    if _exists(pattern):
        return [pattern]
    urls = expand_braces(pattern, wanted.key)
    expanded = [path for url in urls for path in (_glob(url, wanted) if glob.has_magic(url) else [url])]
    missing = [path for path in expanded if not _exists(path)]
    if missing:
        more = f" and {len(missing) - 1} more of the {len(expanded)} it names" if len(missing) > 1 else ""
        raise DataError(f"{wanted.key}={pattern}: no such file: {missing[0]}{more}")
    return expanded


def _exists(path: str) -> bool:
    """Whether there is such a file; a brace pattern can be longer than a file's name may be."""
    try:
        return Path(path).exists()
    except OSError:
        return False


def _glob(pattern: str, wanted: Wanted) -> list[str]:
    found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (takes absolute patterns)
    if not found:
        raise DataError(f"{wanted.key}={pattern} matches no file")
    return [path for name in found for path in (_files_below(name, wanted) if Path(name).is_dir() else [name])]


def _files_below(folder: str, wanted: Wanted) -> list[str]:
    base = str(Path(folder)).rstrip("/")
    entries = (entry for entry in walk(folder) if wanted.found_in(entry.path))
    found = sorted(f"{base}/{entry.path}" for entry in entries if _may_be_file(entry))
    if not found:
        raise DataError(
            f"{wanted.key}={folder} is a folder without a {' or '.join(wanted.suffixes)} file"
            + (wanted.instead and f": {wanted.instead.format(folder=folder)}")
        )
    return found


def _may_be_file(entry: Entry) -> bool:
    """A file, or a link that leads nowhere, of which reading will say so; a pipe would make us wait for ever."""
    status = entry.status()
    return status is None or stat.S_ISREG(status.st_mode)


def _local(pattern: str, wanted: Wanted) -> str:
    """The pattern as a local path. Raises ConfigError for pipes, which are never executed."""
    if pattern.startswith("file://"):
        return pattern.removeprefix("file://")
    if pattern.startswith("pipe:"):
        raise ConfigError(
            f"{wanted.key}={pattern}: pipe: runs a command and is not allowed; name a local {wanted.what}"
        )
    return str(Path(pattern).expanduser())
