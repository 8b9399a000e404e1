"""Where everything of an output lies, and the version of that layout, known here alone; docs/format.md tells it."""

from __future__ import annotations

from pathlib import Path

from lora_clip.errors import OutputError
from lora_clip.types import WorkRange

FORMAT = "lora_clip 2"
"""What is written."""
UNNAMED_FORMAT = "lora_clip 1"
"""What wrote no format into fingerprint.json, no `sizes` into the ledger, and no runs.jsonl."""
READABLE = (UNNAMED_FORMAT, FORMAT)
"""What is read, and gone on with."""
SUFFIXES = {"img_emb": "npy", "text_emb": "npy", "metadata": "parquet", "rejects": "parquet"}
EMBEDDINGS = ("img_emb", "text_emb")
"""The kinds that are arrays of unit vectors; an output of images alone has the first only."""
COMMIT_ORDER = ("rejects", "metadata", "text_emb", "img_emb")
"""Who sees an .npy sees the .parquet that belongs to it; who sees images sees their texts."""


class Layout:
    """The paths of an output in `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.parts = root / "parts"

    def path(self, kind: str, shard: int) -> Path:
        """Where a finished shard's file of a kind (img_emb, text_emb, metadata, rejects) stands."""
        return self.root / kind / file_name(kind, shard)

    def range_path(self, kind: str, work: WorkRange, tag: str = "") -> Path:
        """Where a range's file of a kind stands until its shard is assembled."""
        return self.parts / range_name(kind, work, tag)


def file_name(kind: str, shard: int) -> str:
    """The name of a finished shard's file; ids have a fixed width, since readers sort by path."""
    return f"{kind}_{shard:06d}.{SUFFIXES[kind]}"


def range_name(kind: str, work: WorkRange, tag: str = "") -> str:
    """The name of a range's file; `tag` tells apart those of jobs that have made the same range."""
    return f"{kind}_{work.shard:06d}_{work.start:09d}-{work.stop:09d}{tag and f'_{tag}'}.{SUFFIXES[kind]}"


def check_format(path: Path, found: object) -> None:
    """Raises OutputError where a file says that its output has a layout which this program does not know."""
    if found not in READABLE:
        raise OutputError(
            f"{path} is of the format {found!r}; this lora_clip reads up to {FORMAT!r}. It was written by a newer one: "
            "type pip install --upgrade lora-clip, or give another output_dir"
        )
