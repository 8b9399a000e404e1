"""The index of an output, brought up to date from the command line: what `lora-clip index` does."""

from __future__ import annotations

from pathlib import Path

from lora_clip.io.lock import FolderLock
from lora_clip.output import provenance
from lora_clip.search.index import IndexRecord, build_index


def update(root: Path, factory: str | None = None) -> tuple[IndexRecord, int]:
    """`build_index`, while no job and nobody else writes to the output.

    Raises OutputError where `root` holds no output or where one is being written.
    """
    provenance.require_fingerprint(root)
    lock = FolderLock(root)
    try:
        lock.claim()
        return build_index(root, factory)
    finally:
        lock.release()


def describe(made: IndexRecord, added: int) -> str:
    """What the index is, in a line."""
    if added == 0:
        return f"index:    up to date, {made.rows:,} rows, {made.factory}, recall@10 {made.recall_at_10:.3f}"
    how = f"in {made.seconds:,.1f} s; recall@10 {made.recall_at_10:.3f} against exact search, {made.sample} queries"
    return f"index:    {added:,} rows added, {made.rows:,} in all, {made.factory}, {how}"
