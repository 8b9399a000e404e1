"""Which files a key of the `data` group names, where it names folders."""

from __future__ import annotations

from typing import NamedTuple


class Wanted(NamedTuple):
    """Which files a key names: their suffixes, what one is called, and what to type for a folder without any.

    `beside` are names of files that tell of them: of remote folders a listing shows whether they are there.
    """

    key: str
    suffixes: tuple[str, ...]
    what: str
    instead: str = ""
    beside: tuple[str, ...] = ()

    def found_in(self, path: str) -> bool:
        """Whether a file of this name is one, where only a folder was named."""
        return path.endswith(self.suffixes)


TARS = Wanted(
    "data.shards",
    (".tar",),
    "tar",
    "for a folder of images type data=folder data.folder={folder}",
    ("index.json", "sizes.json"),
)
