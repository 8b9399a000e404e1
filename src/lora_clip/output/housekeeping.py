"""What only the process that holds an output's lock may do: bring it into order, finish its shards, clear it away."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from lora_clip.io.atomic import leftovers, make_folder, storage_error, sync_folder
from lora_clip.output.board import FOLDER
from lora_clip.output.layout import COMMIT_ORDER, SUFFIXES, Layout
from lora_clip.output.ledger import CommittedRange, covers, prefix, work_of
from lora_clip.output.sharing import dissolve
from lora_clip.output.snapshot import Snapshot
from lora_clip.output.store import Store

OUTDATED = ("manifest.json", "report.html")
"""What no longer holds once more is wanted than there is."""
FOLDERS = (*SUFFIXES, "parts", "ranks", "timeline", "index", FOLDER)
FILES = (*OUTDATED, "search.html", "compare.html", "labels.parquet", "inputs.jsonl", "fingerprint.json", "runs.jsonl")


def recover(store: Store, targets: Mapping[int, int], before: Snapshot | None = None) -> Snapshot:
    """Bring an interrupted output into order, and return what it holds then.

    Files that no line of the ledger accounts for are deleted, and a manifest that no longer holds. A final shard of
    which more is wanted than it holds (a `data.limit` was raised) becomes a range in `parts/` again.
    Raises StorageError.
    """
    before = before or store.snapshot()
    if dissolve(store):
        before = store.snapshot()
    ranges = before.committed
    short = [found[0] for shard, found in ranges.items() if found[0].final and found[0].stop < targets.get(shard, 0)]
    try:
        if any(not covers(ranges.get(shard, []), target) for shard, target in targets.items()):
            _withdraw_manifest(store)
        for entry in short:
            _reopen(store, entry)
        now = store.snapshot() if short else before
        left = orphans(now)
        for path in left:
            path.unlink()
    except OSError as error:
        raise storage_error(store.root, error) from error
    return store.snapshot() if left else now


def _withdraw_manifest(layout: Layout) -> None:
    """Durably, before anything is committed: a manifest says that all there is was checked."""
    gone = [layout.root / name for name in OUTDATED if (layout.root / name).exists()]
    for path in gone:
        path.unlink()
    if gone:
        sync_folder(layout.root)


def _reopen(layout: Layout, entry: CommittedRange) -> None:
    make_folder(layout.parts)
    for kind in sorted(entry.checksums, key=COMMIT_ORDER.index, reverse=True):
        final, work = layout.path(kind, entry.shard), layout.range_path(kind, work_of(entry))
        if not work.exists():
            final.replace(work)


def orphans(now: Snapshot) -> list[Path]:
    """Files of ours that nothing accounts for: of a commit that was cut off, or temporary."""
    root = now.layout.root
    claimed = {
        now.place(kind, entry) for found in now.committed.values() for entry in found for kind in entry.checksums
    }
    ours = {(folder, name) for folder in (*now.kinds, "parts") for name in now.files[folder] if _is_ours(folder, name)}
    return [*(root / folder / name for folder, name in sorted(ours - claimed)), *leftovers(root)]


def _is_ours(folder: str, name: str) -> bool:
    if folder == "parts":
        return "_" in name
    return name.startswith(f"{folder}_") and name.endswith(f".{SUFFIXES[folder]}")


def assemble_finished(store: Store, targets: Mapping[int, int], before: Snapshot | None = None) -> Snapshot:
    """Finish the shards whose ranges lie with several ranks, and return what the output holds then."""
    before, changed = before or store.snapshot(), False
    for shard, ranges in before.committed.items():
        target, run = targets.get(shard, 0), prefix(ranges)
        if target and covers(run, target) and (len(run) > 1 or shard not in before.finished):
            store.assemble(0, shard, run, before)
            changed = True
    tidy(store)
    return store.snapshot() if changed else before


def tidy(layout: Layout) -> None:
    """Remove `parts/` once nothing is in it."""
    try:
        if layout.parts.is_dir() and not any(layout.parts.iterdir()):
            layout.parts.rmdir()
    except OSError as error:
        raise storage_error(layout.parts, error) from error


def clear(store: Store) -> None:
    """Delete everything this program wrote into the directory, and nothing else."""
    for folder in FOLDERS:
        shutil.rmtree(store.root / folder, ignore_errors=True)
    for path in leftovers(store.root):
        path.unlink()
    for name in FILES:
        (store.root / name).unlink(missing_ok=True)
    store.ledger.forget()
