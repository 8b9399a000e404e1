"""Which files `data.shards` names: folders, paths, addresses, globs, brace patterns, and lists of these."""

from __future__ import annotations

import glob
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_clip.errors import ConfigError, DataError
from lora_clip.io.addresses import identity, is_remote
from lora_clip.sources.expand_remote import expand_braces, expand_remote
from lora_clip.sources.walk import Entry, walk


def expand(patterns: Any) -> list[str]:
    """The absolute paths and the addresses of the tars that `data.shards` names.

    Folders and globs are sorted, lists and braces as given. Addresses come without their secrets. A file is named once,
    also where two spellings or a link lead to it: nothing is embedded twice.

    Raises DataError where a pattern matches nothing, ConfigError for a scheme that is not read.
    """
    given = as_list(patterns)
    if not given:
        raise ConfigError("data.shards is an empty list: name a folder of tars, a path, a glob or a brace pattern")
    there = dict(expand_remote([pattern for pattern in given if is_remote(pattern)]))
    files: dict[str, str] = {}
    for path in (path for pattern in given for path in there.get(pattern) or _expand_one(pattern)):
        files.setdefault(identity(path), path if is_remote(path) else str(Path(path).absolute()))
    return list(files.values())


def as_list(patterns: Any) -> list[str]:
    """What `data.shards` says, as a list of patterns."""
    many = isinstance(patterns, Sequence) and not isinstance(patterns, str)
    return [str(pattern) for pattern in (patterns if many else [patterns])]


def _expand_one(pattern: str) -> list[str]:
    pattern = _local(pattern)
    if _exists(pattern) and Path(pattern).is_dir():
        return _tars_below(pattern)
    if _exists(pattern):
        return [pattern]
    urls = expand_braces(pattern)
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
    entries = (entry for entry in walk(folder) if entry.path.endswith(".tar"))
    found = sorted(str(Path(folder, entry.path)) for entry in entries if _may_be_tar(entry))
    if not found:
        raise DataError(
            f"data.shards={folder} is a folder without a .tar file: "
            f"for a folder of images type data=folder data.folder={folder}"
        )
    return found


def _may_be_tar(entry: Entry) -> bool:
    """A file, or a link that leads nowhere, of which reading will say so; a pipe would make us wait for ever."""
    status = entry.status()
    return status is None or stat.S_ISREG(status.st_mode)


def _local(pattern: str) -> str:
    """The pattern as a local path. Raises ConfigError for pipes, which are never executed."""
    if pattern.startswith("file://"):
        return pattern.removeprefix("file://")
    if pattern.startswith("pipe:"):
        raise ConfigError(f"data.shards={pattern}: pipe: runs a command and is not allowed; name a local tar")
    return str(Path(pattern).expanduser())
