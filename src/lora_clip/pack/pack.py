"""A folder tree of images → WebDataset tar shards: list, split, write in parallel.

    lora-clip pack IMAGES SHARDS [--shards N] [--workers N]

The listing decides everything: the same relative paths, sizes and number of shards give the same bytes, for any number
of workers and after any interruption. `index.json` in SHARDS is written before the first tar and holds what was
decided, so that a later run can tell a finished shard from a missing one, and this input from another.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from lora_clip.errors import ConfigError, DataError, LoraClipError, StorageError
from lora_clip.io import process
from lora_clip.io.atomic import leftovers
from lora_clip.io.lock import FolderLock
from lora_clip.pack.index import PackedShard, is_finished, read_index, write_index
from lora_clip.pack.listing import list_images
from lora_clip.pack.pool import run_pool
from lora_clip.pack.report import PackReport
from lora_clip.pack.split import MOST_SHARDS, Assignment, resolve_shards
from lora_clip.sources.inventory import Note, PackNotes

LEFTOVER = re.compile(r"(\d{6}\.tar|index\.json)\.\d+\.partial")


def pack(
    images_dir: Path | str, shards_dir: Path | str, shards: int | None = None, workers: int | None = None
) -> PackReport:
    """Packs the images below `images_dir` into tars, so that a job reads few large files instead of many small ones.

    Raises DataError for an input that is missing, empty, changed or changing, ConfigError for a number that cannot be,
    StorageError where the tars cannot be written.
    """
    started = time.monotonic()
    images_dir, shards_dir = Path(images_dir), Path(shards_dir)
    cores = process.cores()
    _check_numbers(shards, workers)
    _check_folders(images_dir, shards_dir)
    listing = list_images(images_dir, shards_dir)
    assignments = resolve_shards(listing, shards_dir, shards, cores)
    every = [shard for shard, _ in assignments]
    missing = [shard for shard in every if not is_finished(shards_dir, shard)]
    damaged = sum((shards_dir / shard.name).exists() for shard in missing)
    with nullcontext() if missing else suppress(StorageError):  # an inventory alone is not worth an error
        _complete(images_dir, shards_dir, assignments, workers or cores)
    return PackReport(shards_dir, every, missing, damaged, listing.left_out, time.monotonic() - started)


def _check_numbers(shards: int | None, workers: int | None) -> None:
    for option, number in (("--shards", shards), ("--workers", workers)):
        if number is not None and not 1 <= number <= MOST_SHARDS:
            raise ConfigError(f"{option} {number}: give a number from 1 to {MOST_SHARDS:,}")


def _check_folders(images_dir: Path, shards_dir: Path) -> None:
    if not images_dir.is_dir():
        raise DataError(f"IMAGES {images_dir}: {'not a folder' if images_dir.exists() else 'no such folder'}")
    if shards_dir.exists() and not shards_dir.is_dir():
        raise DataError(f"SHARDS {shards_dir} is a file: name a folder for the tars, new or empty")
    if shards_dir.exists() and shards_dir.samefile(images_dir):
        raise DataError(f"IMAGES and SHARDS are both {images_dir}: name another folder for the tars")


def _complete(images_dir: Path, shards_dir: Path, assignments: list[Assignment], workers: int) -> None:
    """Write the tars that are missing, and note in index.json what is in each."""
    shards = [shard for shard, _ in assignments]
    notes = _trusted_notes(shards_dir, shards)
    unnoted = [assignment for assignment in assignments if assignment.shard.name not in notes]
    if not unnoted:
        return
    with _claimed(shards_dir):
        if read_index(shards_dir) != shards:
            write_index(shards_dir, shards)
        found = _run(images_dir, shards_dir, unnoted, min(workers, len(unnoted)))
        write_index(shards_dir, shards, notes | found)


def _trusted_notes(shards_dir: Path, shards: list[PackedShard]) -> dict[str, Note]:
    noted, finished = PackNotes(), (shard.name for shard in shards if is_finished(shards_dir, shard))
    return {name: found for name in finished if (found := noted.note(shards_dir / name)) is not None}


def _run(images_dir: Path, shards_dir: Path, assignments: list[Assignment], workers: int) -> dict[str, Note]:
    try:
        found = run_pool(images_dir, shards_dir, assignments, workers)
    except BrokenProcessPool as error:
        raise LoraClipError(
            "a worker process was killed (out of memory?): the same command goes on from there; --workers 1 needs least"
        ) from error
    return {shard.name: note for (shard, _), note in zip(assignments, found, strict=True)}


@contextmanager
def _claimed(shards_dir: Path) -> Iterator[None]:
    """SHARDS to ourselves, made if it is not there, and removed again if nothing came to be in it."""
    is_new = not shards_dir.exists()
    try:
        shards_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make SHARDS {shards_dir}: {error.strerror}") from error
    lock = FolderLock(shards_dir)
    removable = False
    try:
        # Without locks two runs still do no harm: temporary files carry the process id.
        lock.claim(insist=False)
        removable = True
        with _swept(shards_dir):
            yield
    finally:
        lock.release(remove=removable)
        if is_new:
            with suppress(OSError):
                shards_dir.rmdir()


@contextmanager
def _swept(shards_dir: Path) -> Iterator[None]:
    """Without the temporary files of runs that were killed, of this one's workers in the end."""
    _sweep(shards_dir)
    try:
        yield
    finally:
        _sweep(shards_dir)


def _sweep(shards_dir: Path) -> None:
    """Remove what runs that were killed left, before this version too."""
    earlier = (path for path in shards_dir.glob("*.partial") if LEFTOVER.fullmatch(path.name))
    for path in (*leftovers(shards_dir), *earlier):
        with suppress(OSError):
            path.unlink()
