"""Which remote files a key such as `data.shards` names; what a listing says of them is kept for their opening."""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from glob import has_magic
from typing import TypeVar

from lora_clip.errors import ConfigError, DataError
from lora_clip.io import buckets
from lora_clip.io.addresses import redacted, remember, scheme_of
from lora_clip.io.remote import FILES, look_at, note_listed
from lora_clip.io.retry import persist, words
from lora_clip.io.stamps import Stamp
from lora_clip.sources.wanted import TARS, Wanted

Result = TypeVar("Result")
LISTED_WHOLE = 8
"""From how many names in one folder of a bucket on it is cheaper to list that folder than to ask for each."""


def expand_braces(pattern: str, key: str = "data.shards") -> list[str]:
    """The paths or addresses of a brace pattern, in order. Raises ConfigError where it is none."""
    from webdataset.shardlists import expand_urls

    try:
        return expand_urls(pattern)
    except ValueError as error:
        raise ConfigError(f"{key}={redacted(pattern)}: {error}") from error


def remember_secrets(patterns: Iterable[str]) -> None:
    """Know the passwords and signatures in addresses, which their names in plans and files are without."""
    remember(address for pattern in patterns if "@" in pattern or "?" in pattern for address in _addresses(pattern))


def expand_remote(patterns: Sequence[str], wanted: Wanted = TARS) -> Iterator[tuple[str, list[str]]]:
    """Each pattern with the addresses that it names, without their secrets; nothing is read of them.

    Raises DataError where one names nothing, ConfigError for a scheme that is not read.
    """
    named = {pattern: _addresses(pattern, wanted.key) for pattern in patterns}
    every = [address for addresses in named.values() for address in addresses]
    for address in every:
        _check(address, wanted.key)
    names = dict(zip(dict.fromkeys(every), remember(dict.fromkeys(every)), strict=True))
    there = _look((name for address, name in names.items() if not _is_pattern(address)), wanted)
    for pattern, addresses in named.items():
        yield pattern, [found for address in addresses for found in _expand(names[address], there, wanted)]


def _addresses(pattern: str, key: str = "data.shards") -> list[str]:
    return expand_braces(pattern, key) if "{" in pattern or "::" in pattern else [pattern]


def _check(address: str, key: str) -> None:
    """Raises ConfigError for what cannot be read or listed, or needs a package that is not installed."""
    scheme, name = scheme_of(address), redacted(address)
    if scheme not in FILES:
        known = ", ".join(f"{known}://" for known in FILES)
        raise ConfigError(f"{key}={name}: {scheme}:// is not read; {known} and local paths are")
    if scheme in buckets.SCHEMES:
        buckets.client(address)
        return
    if has_magic(address.partition("?")[0]):
        raise ConfigError(f"{key}={name}: {scheme}:// cannot be listed: name each file, or give a brace pattern")


def _is_pattern(address: str) -> bool:
    return scheme_of(address) in buckets.SCHEMES and has_magic(address)


def _expand(name: str, there: Mapping[str, Stamp | OSError], wanted: Wanted) -> list[str]:
    key, found = wanted.key, there.get(name)
    if isinstance(found, tuple):
        note_listed({name: found})
        return [name]
    if found is None:
        return _kept(_asked(name, buckets.list_matching, key), f"{key}={name} matches no file")
    if isinstance(found, IsADirectoryError) or (isinstance(found, FileNotFoundError) and _is_folder(name, key)):
        below = _asked(name, buckets.list_below, key)
        _note_beside(below, wanted)
        files = {address: stamp for address, stamp in below.items() if wanted.found_in(address)}
        return _kept(files, f"{key}={name} is a folder without a {' or '.join(wanted.suffixes)} file")
    raise DataError(f"{key}={name}: {words(found)}") from found


def _is_folder(name: str, key: str) -> bool:
    return scheme_of(name) in buckets.SCHEMES and _asked(name, buckets.is_folder, key)


def _kept(found: dict[str, Stamp], otherwise: str) -> list[str]:
    if not found:
        raise DataError(otherwise)
    note_listed(found)
    return list(found)


def _asked(name: str, question: Callable[[str], Result], key: str) -> Result:
    try:
        return persist(partial(question, name))
    except OSError as error:
        raise DataError(f"{key}={name}: {words(error)}") from error


def _note_beside(listed: Mapping[str, Stamp], wanted: Wanted) -> None:
    note_listed({name: stamp for name, stamp in listed.items() if name.rpartition("/")[2] in wanted.beside})


def _look(names: Iterable[str], wanted: Wanted) -> dict[str, Stamp | OSError]:
    """What is known of single files: by listing their folder where many are in one, else by asking for each."""
    folders: dict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(names):
        folders[name.rpartition("/")[0]].append(name)
    whole = {f: each for f, each in folders.items() if len(each) >= LISTED_WHOLE and scheme_of(f) in buckets.SCHEMES}
    found: dict[str, Stamp | OSError] = {}
    for folder, each in whole.items():
        listed = _asked(folder, buckets.list_folder, wanted.key)
        _note_beside(listed, wanted)
        found |= {name: listed.get(name) or FileNotFoundError(errno.ENOENT, "no such file") for name in each}
    for name, known in look_at(name for folder, each in folders.items() if folder not in whole for name in each):
        if isinstance(known, OSError) and not isinstance(known, FileNotFoundError | IsADirectoryError):
            raise DataError(f"{wanted.key}={name}: {words(known)}") from known  # the others would fare no better
        found[name] = known
    return found
