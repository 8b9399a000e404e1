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
from contextlib import contextmanager, suppress
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
    tasks = resolve_shards(listing, shards_dir, shards, cores)
    missing = [task for task in tasks if not is_finished(shards_dir, task.shard)]
    damaged = sum((shards_dir / task.shard.name).exists() for task in missing)
    every, written = [task.shard for task in tasks], [task.shard for task in missing]
    if missing:
        with _claimed(shards_dir):
            _write_missing(images_dir, shards_dir, every, missing, workers or cores)
    return PackReport(shards_dir, every, written, damaged, listing.left_out, time.monotonic() - started)


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


def _write_missing(
    images_dir: Path, shards_dir: Path, shards: list[PackedShard], missing: list[Assignment], workers: int
) -> None:
    _sweep(shards_dir)
    if read_index(shards_dir) != shards:
        write_index(shards_dir, shards)
    try:
        run_pool(images_dir, shards_dir, missing, min(workers, len(missing)))
    except BrokenProcessPool as error:
        raise LoraClipError(
            "a worker process was killed (out of memory?): the same command goes on from there; --workers 1 needs least"
        ) from error
    finally:
        _sweep(shards_dir)


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
        yield
    finally:
        lock.release(remove=removable)
        if is_new:
            with suppress(OSError):
                shards_dir.rmdir()


def _sweep(shards_dir: Path) -> None:
    """Remove what runs that were killed left, before this version too."""
    earlier = (path for path in shards_dir.glob("*.partial") if LEFTOVER.fullmatch(path.name))
    for path in (*leftovers(shards_dir), *earlier):
        with suppress(OSError):
            path.unlink()
