"""A folder tree of images → WebDataset tar shards: list, split, write in parallel.

    python scripts/pack.py IMAGES SHARDS [--shards N] [--workers N]

The listing decides everything: the same relative paths, sizes and number of shards give the same bytes, for any number
of workers and after any interruption. `index.json` in SHARDS is written before the first tar and holds what was
decided, so that a later run can tell a finished shard from a missing one, and this input from another.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import shlex
import signal
import stat
import sys
import tarfile
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

from tqdm import tqdm

from lora_clip.errors import ConfigError, DataError, LoraClipError, StorageError
from lora_clip.io import process
from lora_clip.io.atomic import leftovers, replaced
from lora_clip.io.lock import FolderLock
from lora_clip.sources.names import extra_name, image_name
from lora_clip.sources.walk import walk

IMAGES_PER_SHARD = 1000
BYTES_PER_SHARD = 256_000_000
IMAGES_WORTH_A_SHARD = 50
MOST_SHARDS = 1_000_000
INDEX = "index.json"
WRITTEN_BY = "lora_clip pack 1"
LEFTOVER = re.compile(r"(\d{6}\.tar|index\.json)\.\d+\.partial")
IN_SHARDS, OTHER = "images inside SHARDS", "other files"
ORPHAN, NOWHERE = "captions or json without an image", "broken links and special files"
LOOP, AGAIN = "links back to a folder that holds them", "folders that have another name here too"


class Member(NamedTuple):
    """A file as it was listed: its path relative to IMAGES and its size in bytes."""

    path: str
    size: int


Sample = tuple[Member, ...]
"""The files that share a key, an image first: they stay together in one shard."""


class Listing(NamedTuple):
    """What is to be packed, in order, and the paths that are not, by reason."""

    samples: list[Sample]
    left_out: dict[str, list[str]]


class Shard(NamedTuple):
    """One tar as `index.json` records it; `bytes` is the tar's size, `digest` that of its paths and their sizes."""

    name: str
    samples: int
    images: int
    captions: int
    json: int
    bytes: int
    first: str
    digest: str


class Task(NamedTuple):
    """A shard and the files that make it up, in the order of the tar."""

    shard: Shard
    members: list[Member]


@dataclass(frozen=True)
class PackReport:
    """What a run found and did; as text, the summary that a person reads at the end."""

    shards_dir: Path
    shards: list[Shard]
    written: list[Shard]
    damaged: int
    left_out: dict[str, list[str]]
    seconds: float

    def __str__(self) -> str:
        lines = [self._deed(), *self._left_out(), f"next: {_next_command(self.shards_dir)}"]
        return "\n".join(lines)

    def _deed(self) -> str:
        if not self.written:
            return f"nothing to do: {self.shards_dir} already holds all of it: {_contents(self.shards)}"
        images = sum(shard.images for shard in self.written)
        deed = f"packed {_contents(self.written)} in {self.seconds:.1f} s: {images / self.seconds:,.0f} images/s"
        if self.damaged:
            deed += f"\n{_count(self.damaged, 'shard')} of the wrong size written again"
        if len(self.written) < len(self.shards):
            deed += f"\nwith those finished before: {_contents(self.shards)}"
        return deed

    def _left_out(self) -> Iterator[str]:
        for reason, paths in sorted(self.left_out.items()):
            yield f"left out: {len(paths):,} {reason}, such as {min(paths)!r}"


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
    tasks = _settle(listing, shards_dir, shards, cores)
    missing = [task for task in tasks if not _is_finished(shards_dir, task.shard)]
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


# Listing


def list_images(images_dir: Path, shards_dir: Path) -> Listing:
    """The images below `images_dir` sorted by path, each with its caption and json, and what is not packed.

    Raises DataError where there is no image or a folder cannot be read.
    """
    left_out: dict[str, list[str]] = defaultdict(list)
    samples = _samples(sorted(_files(images_dir, shards_dir, left_out)), left_out)
    if not samples:
        seen = "; ".join(f"{len(paths):,} {reason}, such as {min(paths)!r}" for reason, paths in left_out.items())
        raise DataError(f"no image in {images_dir}: {seen or 'the folder is empty'}")
    return Listing(samples, dict(left_out))


def _samples(members: Iterable[Member], left_out: dict[str, list[str]]) -> list[Sample]:
    images: dict[str, list[Member]] = defaultdict(list)
    extras: dict[str, list[Member]] = defaultdict(list)
    for member in members:
        if (image := image_name(member.path)) is not None:
            images[image.key].append(member)
        elif (extra := extra_name(member.path)) is not None:
            extras[extra[0]].append(member)
        else:
            left_out[OTHER].append(member.path)
    if orphans := [member.path for key, found in extras.items() if key not in images for member in found]:
        left_out[ORPHAN] = orphans
    return [(found[0], *extras.get(key, ()), *found[1:]) for key, found in images.items()]


def _files(images_dir: Path, shards_dir: Path, left_out: dict[str, list[str]]) -> Iterator[Member]:
    """Every regular file that `walk` finds; images that really lie in SHARDS are not packed."""
    own = os.path.realpath(shards_dir) + "/"
    for entry in walk(images_dir, lambda path, loop: left_out[LOOP if loop else AGAIN].append(path)):
        status = entry.status()
        if status is None or not stat.S_ISREG(status.st_mode):
            left_out[NOWHERE].append(entry.path)
        elif not f"{entry.folder}/".startswith(own):
            yield Member(entry.path, status.st_size)
        elif image_name(entry.path) is not None:
            left_out[IN_SHARDS].append(entry.path)


# Splitting


def default_shards(images: int, size: int, cores: int) -> int:
    """About 1,000 images or 256 MB a shard, whichever is less, and one for every core that would find 50 images."""
    worth_reading = min(cores, images // IMAGES_WORTH_A_SHARD)
    return max(1, -(-images // IMAGES_PER_SHARD), -(-size // BYTES_PER_SHARD), worth_reading)


def split(sizes: Sequence[int], count: int) -> list[int]:
    """Where to cut a sequence into `count` non-empty runs of about the same sum: `count + 1` indices from 0 on."""
    ends = list(accumulate(sizes, initial=0))
    cuts = [0]
    for number in range(1, count):
        ideal = ends[-1] * number // count
        cut = bisect_left(ends, ideal)
        cut -= ends[cut] - ideal > ideal - ends[cut - 1] if cut else 0
        cuts.append(min(max(cut, cuts[-1] + 1), len(sizes) - count + number))
    return [*cuts, len(sizes)]


def _settle(listing: Listing, shards_dir: Path, asked: int | None, cores: int) -> list[Task]:
    """The shards that an earlier run began, or new ones where there is no tar yet; DataError for another input."""
    recorded = _read_index(shards_dir)
    present = {path.name for path in shards_dir.glob("*.tar")}
    if foreign := present - {shard.name for shard in recorded}:
        raise DataError(f"SHARDS {shards_dir} holds other tars, such as {min(foreign)!r}: name a new folder")
    cuts = list(accumulate((shard.samples for shard in recorded), initial=0))
    tasks = _tasks(listing.samples, cuts if cuts[-1] >= len(listing.samples) else [*cuts, len(listing.samples)])
    now = [task.shard for task in tasks]
    if now == recorded and asked in (None, len(recorded)):
        return tasks
    if present:
        _refuse(shards_dir, recorded, now, asked)
    return _fresh_tasks(listing.samples, asked, cores)


def _refuse(shards_dir: Path, recorded: list[Shard], now: list[Shard], asked: int | None) -> NoReturn:
    then, remedy = _contents(recorded), "name a new folder for SHARDS, or delete its .tar files, and type it again"
    if now == recorded:
        raise DataError(
            f"--shards {asked}: {shards_dir} was begun with {then}: leave --shards out to go on, or {remedy}"
        )
    old = next((old for old, new in zip(recorded, now, strict=False) if old != new), None)
    where = f"the first difference lies in {old.name}, from {old.first!r} on" if old else "the new ones sort last"
    today = _contents(now, counted=False)
    raise DataError(f"IMAGES has changed since {shards_dir} was begun: then {then}; now {today}; {where}: {remedy}")


def _fresh_tasks(samples: list[Sample], asked: int | None, cores: int) -> list[Task]:
    if asked is not None and asked > len(samples):
        raise DataError(f"--shards {asked}: there are images for {len(samples):,} shards at most")
    sizes = [sum(map(_stored_size, sample)) for sample in samples]
    count = asked or min(default_shards(len(samples), sum(sizes), cores), len(samples), MOST_SHARDS)
    return _tasks(samples, split(sizes, count))


def _tasks(samples: list[Sample], cuts: Sequence[int]) -> list[Task]:
    tasks = []
    for number, (start, stop) in enumerate(pairwise(cuts)):
        members = [member for sample in samples[start:stop] for member in sample]
        tasks.append(Task(_describe(number, members, len(samples[start:stop])), members))
    return tasks


def _describe(number: int, members: list[Member], samples: int) -> Shard:
    digest = hashlib.sha256("".join(f"{path}\0{size}\0" for path, size in members).encode("utf-8", "surrogateescape"))
    suffixes = [member.path.rpartition(".")[2].lower() for member in members]
    captions, metadata = suffixes.count("txt"), suffixes.count("json")
    return Shard(
        f"{number:06d}.tar",
        samples,
        len(members) - captions - metadata,
        captions,
        metadata,
        _tar_size(members),
        members[0].path if members else "",
        digest.hexdigest(),
    )


def _tar_size(members: Iterable[Member]) -> int:
    content = sum(map(_stored_size, members)) + 2 * tarfile.BLOCKSIZE
    return -(-content // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def _stored_size(member: Member) -> int:
    is_plain = len(member.path) <= tarfile.LENGTH_NAME and member.path.isascii() and member.size < 8**11
    header = tarfile.BLOCKSIZE if is_plain else len(_header(member).tobuf(tarfile.PAX_FORMAT, "utf-8"))
    return header + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


# Writing


def write_shard(
    images_dir: Path, target: Path, members: Sequence[Member], after: Callable[[Member], None] = lambda member: None
) -> None:
    """Writes one tar that is there whole or not at all; `after` is called behind each file.

    Raises DataError where a file is not as it was listed, StorageError where the tar cannot be written.
    """
    with replaced(target) as file, _open_tar(file) as tar:
        for member in members:
            _add(tar, images_dir, member)
            after(member)


def _open_tar(file: BinaryIO) -> tarfile.TarFile:
    pax, one_read = tarfile.PAX_FORMAT, 1 << 20
    return tarfile.TarFile(fileobj=file, mode="w", format=pax, encoding="utf-8", copybufsize=one_read)


def _add(tar: tarfile.TarFile, images_dir: Path, member: Member) -> None:
    path = images_dir / member.path
    with _reading(path):
        file = path.open("rb")
    with file:
        before = os.fstat(file.fileno())
        if before.st_size != member.size:
            raise _changed(path)
        tar.addfile(_header(member), _Source(file, path))
        now = os.fstat(file.fileno())
        if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise _changed(path)


def _header(member: Member) -> tarfile.TarInfo:
    info = tarfile.TarInfo(member.path)  # its defaults name no owner and no time: mode 0644, uid = gid = mtime = 0
    info.size = member.size
    return info


class _Source:
    """Hands a file's bytes to `tarfile`, and tells trouble with the input from trouble with the output."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path

    def read(self, size: int = -1, /) -> bytes:
        with _reading(self._path):
            data = self._file.read(size)
        if len(data) < size:
            raise _changed(self._path)
        return data


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{str(path)!r} vanished while it was packed: let nothing else write to IMAGES") from error
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror}") from error


def _changed(path: Path) -> DataError:
    return DataError(f"{str(path)!r} changed while it was packed: let nothing else write to IMAGES")


# In parallel


class _StoppedError(Exception):
    """The parent asked the workers to stop."""


def _write_missing(images_dir: Path, shards_dir: Path, shards: list[Shard], missing: list[Task], workers: int) -> None:
    _sweep(shards_dir)
    if _read_index(shards_dir) != shards:
        _write_index(shards_dir, shards)
    try:
        _run_pool(images_dir, shards_dir, missing, min(workers, len(missing)))
    except BrokenProcessPool as error:
        raise LoraClipError(
            "a worker process was killed (out of memory?): the same command goes on from there; --workers 1 needs least"
        ) from error
    finally:
        _sweep(shards_dir)


def _run_pool(images_dir: Path, shards_dir: Path, tasks: list[Task], workers: int) -> None:
    # Spawned, not forked: the caller may have threads, and a forked worker would hold the lock on SHARDS.
    context = multiprocessing.get_context("spawn")
    # Shared without locks: a worker that is killed while it holds one would leave all others waiting.
    stop, done = context.RawValue("b", 0), context.RawArray("q", len(tasks))
    pool = ProcessPoolExecutor(workers, context, _start_worker, (stop, done))
    with _interrupts_held() as held:
        try:
            jobs = [(n, images_dir, shards_dir / shard.name, files) for n, (shard, files) in enumerate(tasks)]
            futures = [pool.submit(_work, *job) for job in jobs]
            _follow(futures, done, sum(task.shard.images for task in tasks), held)
        finally:
            stop.value = 1
            pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[set[signal.Signals]]:
    """Ctrl-C and SIGTERM, where they would interrupt, stay pending in here, in this process and in those it starts.

    An interrupt inside `concurrent.futures` can leave a lock behind that its own threads then wait for for ever; and a
    terminal sends Ctrl-C to the workers too, though the parent alone decides to stop.
    """
    held = {number for number in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(number))}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield held
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _follow(futures: list[Future[None]], done: Iterable[int], total: int, held: set[signal.Signals]) -> None:
    title = _count(len(futures), "shard")
    interval = 0.1 if sys.stderr.isatty() else 10  # a log file is no place for ten lines a second
    with tqdm(desc=title, total=total, unit=" images", mininterval=interval, dynamic_ncols=True) as bar:
        pending = set(futures)
        try:
            while pending:
                finished, pending = wait(pending, timeout=0.1, return_when=FIRST_EXCEPTION)
                if signal.sigpending() & held:
                    raise KeyboardInterrupt
                bar.update(sum(done) - bar.n)
                for future in finished:
                    future.result()
        except BaseException:
            bar.leave = False
            raise


_stop: Any
_done: Any


def _start_worker(stop: Any, done: Any) -> None:
    global _stop, _done
    _stop, _done = stop, done
    # With SIGTERM the pool ends the workers that are left when one of them was killed.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    process.end_with_parent()


def _work(number: int, images_dir: Path, target: Path, members: list[Member]) -> None:
    def after(member: Member) -> None:
        if _stop.value:
            raise _StoppedError
        _done[number] += image_name(member.path) is not None

    write_shard(images_dir, target, members, after)


# The shards' folder


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


def _is_finished(shards_dir: Path, shard: Shard) -> bool:
    # A tar gets its name only when it is whole; its size guards against what others did to it since.
    path = shards_dir / shard.name
    return path.is_file() and path.stat().st_size == shard.bytes


def _sweep(shards_dir: Path) -> None:
    """Remove what runs that were killed left, before this version too."""
    earlier = (path for path in shards_dir.glob("*.partial") if LEFTOVER.fullmatch(path.name))
    for path in (*leftovers(shards_dir), *earlier):
        with suppress(OSError):
            path.unlink()


def _write_index(shards_dir: Path, shards: list[Shard]) -> None:
    content = {"written_by": WRITTEN_BY, "shards": [shard._asdict() for shard in shards]}
    with replaced(shards_dir / INDEX) as file:
        file.write(json.dumps(content, indent=1).encode("ascii"))


def _read_index(shards_dir: Path) -> list[Shard]:
    """The shards that an earlier run decided on, or none; raises DataError for an index of something else."""
    path = shards_dir / INDEX
    try:
        content = json.loads(path.read_bytes())
        if content["written_by"] != WRITTEN_BY:
            raise ValueError(content["written_by"])
        return [Shard(**record) for record in content["shards"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} was not written by this command or is damaged: name a new folder") from error


# Words


def _contents(shards: list[Shard], counted: bool = True) -> str:
    images, captions, metadata = (sum(column) for column in zip(*(shard[2:5] for shard in shards), strict=True))
    size = tqdm.format_sizeof(sum(shard.bytes for shard in shards), "B")
    where = f" in {_count(len(shards), 'shard')}" if counted else ""
    return f"{_count(images, 'image')}, {_count(captions, 'caption')}, {metadata:,} json{where} ({size})"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _next_command(shards_dir: Path) -> str:
    path = str(shards_dir)
    if not re.fullmatch(r"[\w./-]+", path, re.ASCII):  # Hydra's own syntax wants quotes inside the shell's
        path = '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"python predict.py data=shards {shlex.quote(f'data.shards={path}')} model.adapter=ADAPTER output_dir=EMB"
