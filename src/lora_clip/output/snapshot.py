"""What an output holds at one moment: the ledger parsed and the folders listed once, then passed on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lora_clip.io.objects import Object
from lora_clip.output.layout import SUFFIXES, Layout, file_name, range_name
from lora_clip.output.ledger import CommittedRange, Ledger, by_shard, prefix, prefix_length, work_of
from lora_clip.output.share import shared_ranges


@dataclass(frozen=True)
class Snapshot:
    """The ledger's `lines`, and what lies in each folder by name (`files`), as it was when it was taken.

    A listing of five folders takes the place of a question a file, which network file systems answer slowly; and no
    Path is made of a name that nobody opens, which at a hundred thousand shards takes longer than all else.
    """

    layout: Layout
    lines: Sequence[CommittedRange]
    files: Mapping[str, Mapping[str, os.DirEntry[str] | Object]]

    @cached_property
    def kinds(self) -> Sequence[str]:
        """The kinds of files that are this output's: where no texts were embedded, a `text_emb/` is somebody else's."""
        texts = any("text_emb" in entry.checksums for entry in self.lines)
        return [kind for kind in SUFFIXES if texts or kind != "text_emb"]

    @cached_property
    def committed(self) -> dict[int, list[CommittedRange]]:
        """What is committed of each shard, and still there: ranges whose files are gone do not count."""
        return by_shard(entry for entry in self.lines if all(self._is_there(kind, entry) for kind in entry.checksums))

    @cached_property
    def finished(self) -> dict[int, CommittedRange]:
        """The range of each shard whose files a reader sees."""
        return {shard: found[0] for shard, found in self.committed.items() if found[0].final and self._stands(found[0])}

    def prefixes(self) -> dict[int, int]:
        """How many leading positions of each shard are committed."""
        return {shard: prefix_length(prefix(found)) for shard, found in self.committed.items()}

    def locate(self, kind: str, entry: CommittedRange) -> Path:
        """Where a committed range's file of a kind is; a finished shard may have been taken back into `parts/`."""
        return self.layout.root.joinpath(*self.place(kind, entry))

    def place(self, kind: str, entry: CommittedRange) -> tuple[str, str]:
        """The same as a folder below the root and a name in it."""
        if entry.final and not self._in_parts(kind, entry):
            return kind, file_name(kind, entry.shard)
        return "parts", range_name(kind, work_of(entry), entry.tag)

    def size(self, kind: str, entry: CommittedRange) -> int:
        """The bytes of a committed range's file. Raises OSError where it has gone since."""
        folder, name = self.place(kind, entry)
        return self.files[folder][name].stat().st_size

    def gone(self, shard: int) -> list[str]:
        """The files of a finished shard that the ledger tells of and that are not there."""
        finals = [entry for entry in self._told.get(shard, []) if entry.final]
        return [
            "/".join(self.place(kind, entry))
            for entry in finals
            for kind in entry.checksums
            if not self._is_there(kind, entry)
        ]

    @cached_property
    def _told(self) -> dict[int, list[CommittedRange]]:
        return by_shard(self.lines)

    def _stands(self, entry: CommittedRange) -> bool:
        return not any(self._in_parts(kind, entry) for kind in entry.checksums)

    def _is_there(self, kind: str, entry: CommittedRange) -> bool:
        return self._in_parts(kind, entry) or (entry.final and file_name(kind, entry.shard) in self.files[kind])

    def _in_parts(self, kind: str, entry: CommittedRange) -> bool:
        # nearly always empty: no name is made up for each of a million files to find that out
        return bool(self.files["parts"]) and range_name(kind, work_of(entry), entry.tag) in self.files["parts"]


def take_snapshot(layout: Layout, ledger: Ledger) -> Snapshot:
    """The output as it is now; of the ledger only what was appended since `ledger` last read it is parsed."""
    # before the folders: a file is there before its line; what is in shared/ goes when it stands in the ledger
    lines = [*shared_ranges(layout.root), *ledger.ranges()]
    return Snapshot(layout, lines, {name: _list(layout.root / name) for name in (*SUFFIXES, "parts")})


def _list(folder: Path) -> dict[str, os.DirEntry[str]]:
    try:
        return {entry.name: entry for entry in os.scandir(folder)}
    except (FileNotFoundError, NotADirectoryError):
        return {}
