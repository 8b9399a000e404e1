"""What tells that a file is still the one that it was, without reading it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from lora_clip.io.retry import ChangedError

Stamp = tuple[int, int | str]
"""(size in bytes, mark of this content): of a local file the time of its last change in ns, of a remote one its ETag,
version or date, "" where it has none. The same as long as nobody writes to the file."""
TAGS = ("ETag", "etag", "sha256", "blob_id", "generation", "md5Hash", "mtime", "LastModified", "created")


def stamp_from(info: Mapping[str, Any]) -> Stamp:
    """The stamp of what a file system of fsspec says of an object."""
    known = {**info, **(info.get("lfs") or {}), "size": info.get("size")}
    tag = next((known[tag] for tag in TAGS if known.get(tag)), "")
    return int(known["size"] or 0), str(tag.timestamp() if isinstance(tag, datetime) else tag).strip('"')


def compare(expected: Stamp, found: Stamp) -> None:
    """Raises ChangedError where the size or the mark differ; a mark that one side lacks is not compared."""
    if expected[0] != found[0]:
        raise ChangedError(f"{found[0]} bytes, {expected[0]} then")
    if expected[1] and found[1] and expected[1] != found[1]:
        raise ChangedError(f"its ETag or version is {found[1]}, and was {expected[1]}")
