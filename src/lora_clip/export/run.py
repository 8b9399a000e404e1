"""`lora-clip export`: what is new of an output goes to where it is wanted, and nothing else is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lora_clip.export.base import open_target
from lora_clip.export.content import Content
from lora_clip.io.atomic import storage_error
from lora_clip.io.lock import FolderLock
from lora_clip.terminal import count_of


@dataclass(frozen=True)
class Exported:
    """What an export did: shards that are new, that took another's place, that went, and that were there already."""

    rows: int
    new: int
    replaced: int
    gone: int
    kept: int
    finished: bool
    opened_by: str


def export(root: Path, kind: str, into: Path, progress: Callable[[int], None] = lambda rows: None) -> Exported:
    """Bring the export of an output up to date, shard by shard; one that is complete is left untouched.

    Raises OutputError, ConfigError or StorageError; what was written before counts, and the same call goes on.
    """
    content = Content(root)
    target = open_target(kind, content, into, progress)
    try:
        target.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(target.folder, error) from error
    lock = FolderLock(target.folder)
    lock.claim(insist=False)
    try:
        held = target.held()
        new = [number for number, shard in content.shards.items() if held.get(number) != shard.token]
        gone = [number for number in held if number not in content.shards]
        target.bring(new, gone)
    finally:
        lock.release(remove=True)
    replaced = len([number for number in new if number in held])
    kept = len(content.shards) - len(new)
    return Exported(
        content.rows, len(new) - replaced, replaced, len(gone), kept, content.model is not None, target.opened_by()
    )


def describe(done: Exported) -> str:
    """What was done, in a few lines."""
    parts = [
        f"{count_of(count, 'shard')} {what}"
        for count, what in (
            (done.new, "added"), (done.replaced, "replaced"), (done.gone, "taken out"), (done.kept, "as before"),
        )
        if count
    ]  # fmt: skip
    lines = [f"exported: {done.rows:,} rows ({', '.join(parts)})"]
    if not done.finished:
        lines.append("note: the job has not come to its end; export again for what is still to come")
    return "\n".join([*lines, f"open it:  {done.opened_by}"])


def default_place(root: Path, kind: str) -> Path:
    """Where an export goes that is not told where: a folder of the output that no reader of outputs looks into."""
    return root / "exports" / kind
