"""Addresses such as s3://bucket/key: their schemes, and how they are written down without what they keep secret.

A password and a signed query are for the server alone. Files, messages and logs have the address without them, which
is also its name from one run to the next, since signatures expire; this process remembers the rest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from urllib.parse import parse_qsl, urlencode

from lora_clip.errors import ConfigError

PLAIN_PARAMETERS = frozenset(
    (
        *("versionid", "version", "generation", "revision", "ref", "id", "name", "file", "filename", "path"),
        *("shard", "index", "page", "n", "part", "download", "raw"),
    )
)
"""Of a query, what names the file and nothing secret; all else is left out of what is written down."""
ADDRESS = re.compile(r"\b[a-zA-Z][a-zA-Z0-9]*://[^\s'\"<>]+")
_secret: dict[str, str] = {}


def scheme_of(address: str) -> str:
    """`s3` of `s3://bucket/key`; `file` of a path."""
    scheme, mark, _ = address.partition("://")
    return scheme.lower() if mark and scheme.isalnum() else "file"


def is_remote(address: str) -> bool:
    """Whether an address is neither a path nor a file:// address."""
    return scheme_of(address) != "file"


def redacted(address: str) -> str:
    """The address without user, password and signature; a path as it is."""
    if not is_remote(address):
        return address
    scheme, _, rest = address.partition("://")
    host, slash, path = rest.partition("/")
    path, mark, query = path.partition("?")
    if mark and "=" not in query:  # a pattern's sign for any character
        path, query = f"{path}?{query}", ""
    kept = urlencode([pair for pair in parse_qsl(query, keep_blank_values=True) if pair[0].lower() in PLAIN_PARAMETERS])
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}{kept and f'?{kept}'}"


def redacted_text(text: str) -> str:
    """A text with every address in it redacted."""
    return ADDRESS.sub(lambda found: redacted(found.group()), text)


def remember(addresses: Iterable[str]) -> list[str]:
    """The addresses as they are written down; what that leaves out is known in this process from now on.

    Raises ConfigError where two of them would be written alike: one would be taken for the other.
    """
    names: dict[str, str] = {}
    for address in addresses:
        name = redacted(address)
        if names.setdefault(name, address) != address:
            raise ConfigError(
                f"two addresses are {name} without their secrets, so that one would be taken for the other: what tells "
                f"files apart must be in the path, or in one of the parameters {', '.join(sorted(PLAIN_PARAMETERS))}"
            )
        if name != address:
            _secret[name] = address
    return list(names)


def complete(name: str) -> str:
    """The address that was remembered under a name: with its secrets, for the server alone."""
    return _secret.get(name, name)


def identities(addresses: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each with that by which two names of one file are known as one: a path's real path, an address itself.

    Of many files in one folder the way to it is followed once.
    """
    real: dict[str, str] = {}
    for address in addresses:
        name = address.rpartition("/")[2]
        if is_remote(address):
            yield address, address
        elif name in ("", ".", "..") or os.path.islink(address):  # noqa: PTH114 (hundreds of thousands)
            yield address, os.path.realpath(address)
        else:
            folder = address[: -len(name)]
            real[folder] = real.get(folder) or os.path.realpath(folder or ".")
            yield address, f"{real[folder].rstrip('/')}/{name}"
