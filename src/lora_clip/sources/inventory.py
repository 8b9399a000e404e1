"""What `lora-clip pack` noted of the tars that it wrote, in `index.json` beside them: they need no scan.

A note holds while its tar has the same size and was last touched, its owner and mode included, before index.json was
written. Every other tar is scanned, a copy too: packing the same folder again takes its notes anew.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_clip.errors import DataError
from lora_clip.io.stamps import Stamp
from lora_clip.sources.base import Shard

INDEX = "index.json"
WRITTEN_BY = "lora_clip pack 1"

Note = Mapping[str, Any]
"""A scanned tar as index.json keeps it, less what a copy of the same bytes would not share: id, path and time."""


def note(shard: Shard) -> Note:
    """What to keep of a tar that was just scanned."""
    state = dict(shard.state)
    size, _ = state.pop("stamp")
    record = {key: value for key, value in shard.to_json().items() if key not in ("id", "path", "state")}
    return {"size": size, **record, "state": state}


class PackNotes:
    """The notes beside tars; each folder's index.json is read once, when the first of its tars is asked for."""

    def __init__(self) -> None:
        self._folders: dict[Path, tuple[int, Mapping[str, Note]]] = {}

    def note(self, tar: Path) -> Note | None:
        """The tar's note, or None where only a scan can tell what is in it."""
        found = self._find(tar)
        return found and found[0]

    def shard(self, shard_id: int, tar: Path) -> Shard | None:
        """What a scan of the tar would find, or None where only a scan can tell."""
        found = self._find(tar)
        if found is None:
            return None
        try:
            state = {"stamp": [*found[1]], **found[0]["state"]}
            return Shard.from_json({**found[0], "id": shard_id, "path": str(tar), "state": state})
        except (KeyError, TypeError, DataError):  # an index.json that somebody has edited
            return None

    def _find(self, tar: Path) -> tuple[Note, Stamp] | None:
        """The tar's note and its present stamp, from one look at the file: no change can come between them."""
        if tar.parent not in self._folders:
            self._folders[tar.parent] = _read(tar.parent / INDEX)
        written, notes = self._folders[tar.parent]
        if tar.name not in notes:
            return None
        try:
            status = tar.lstat()  # not where a link leads: that file may be an old one that has come into this place
        except OSError:
            return None
        # An equal time is too late: the clocks of some file systems tick every second or two.
        untouched = stat.S_ISREG(status.st_mode) and max(status.st_mtime_ns, status.st_ctime_ns) < written
        same = untouched and notes[tar.name].get("size") == status.st_size
        return (notes[tar.name], (status.st_size, status.st_mtime_ns)) if same else None


def _read(path: Path) -> tuple[int, Mapping[str, Note]]:
    """When an index.json was written, in ns, and its notes by the names of the tars: none where it is not pack's."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would make us wait for ever
            return 0, {}
        content = json.loads(path.read_bytes())
        notes = content["inventory"].items() if content["written_by"] == WRITTEN_BY else ()
        return status.st_mtime_ns, {name: found for name, found in notes if isinstance(found, dict)}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return 0, {}
