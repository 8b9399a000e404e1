"""Files that are there whole or not at all, whatever happens: written under a temporary name, synced, then renamed.

`replaced` for one file, `replace_together` for several that belong to one another, `write_text` for a few lines. What a
process leaves that is killed on the way is a `.NAME.PID-RANDOM.tmp`, which `leftovers` finds.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lora_clip.errors import StorageError


class Written(NamedTuple):
    """What was written to a file: its SHA-256 and its size in bytes."""

    sha256: str
    size: int


class HashedFile(io.BufferedWriter):
    """A new file whose SHA-256 is taken of the bytes as they are handed over: it also tells what a disk made of them.

    It is written from the beginning to the end: seeking back would make the checksum another file's.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "wb"), buffer_size=1 << 20)
        self.sha256 = hashlib.sha256()

    def write(self, data: Any, /) -> int:
        """Append bytes."""
        self.sha256.update(data)
        return super().write(data)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Refused. Raises io.UnsupportedOperation."""
        raise io.UnsupportedOperation("a hashed file is written from the beginning to the end")


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` once all of it is on disk; after an error nothing is left of it.

    Raises StorageError where the file system refuses.
    """
    temporary = temporary_name(path)
    with _or_nothing(path, [temporary]):
        with temporary.open("wb", buffering=1 << 20) as file:
            yield file
            sync_file(file)
        temporary.replace(path)
        sync_folder(path.parent)


def replace_together(writers: dict[Path, Callable[[BinaryIO], None]], folder: Path) -> list[Written]:
    """Write several files in `folder` until all are on disk, and only then move each to its path.

    The renames follow one another at once, in the order given: who sees the last file sees all of them. After an error
    before them nothing is left. Raises StorageError where the file system refuses.
    """
    temporaries = {path: temporary_name(path, folder) for path in writers}
    with _or_nothing(next(reversed(writers), folder), temporaries.values()):
        written = [_write_hashed(temporaries[path], write) for path, write in writers.items()]
        for path, temporary in temporaries.items():
            temporary.replace(path)
        for parent in {path.parent for path in writers}:
            sync_folder(parent)
    return written


def write_text(path: Path, text: str) -> None:
    """Replace a small text file whole or not at all. Raises StorageError."""
    with replaced(path) as file:
        file.write(text.encode())


def append_line(path: Path, line: bytes) -> None:
    """Add a line to a file and wait until it is on disk; one that was cut off before it stays a line of its own.

    Raises OSError.
    """
    fresh = not path.exists()
    with path.open("ab+") as file:
        file.write(line + b"\n" if _ends_clean(path) else b"\n" + line + b"\n")
        sync_file(file)
    if fresh:
        sync_folder(path.parent)


def _ends_clean(path: Path) -> bool:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 1))
        return file.read(1) in (b"", b"\n")


def temporary_name(path: Path, folder: Path | None = None) -> Path:
    """A name under which to write a file that is to become `path`, beside it or in a given folder.

    No other process has it: containers on several machines may all have the same number.
    """
    return (folder or path.parent) / f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp"


def leftovers(folder: Path) -> Iterator[Path]:
    """The temporary files in a folder: of processes that were killed, where no other process is writing there."""
    return folder.glob(".*.tmp")


def make_folder(folder: Path) -> None:
    """Make a folder where it is missing, durably; its parent must be there."""
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_file(file: BinaryIO) -> None:
    """Wait until what was written to a file is on disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename in the folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def storage_error(path: Path, error: OSError) -> StorageError:
    """What a user is told when the file system refuses."""
    remedy = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "put that right"
    return StorageError(
        f"cannot write {path}: {error.strerror or error}. What is finished is safe: "
        f"{remedy} and type the same command again"
    )


def _write_hashed(path: Path, write: Callable[[BinaryIO], None]) -> Written:
    with HashedFile(path) as file:
        write(file)
        sync_file(file)
        return Written(file.sha256.hexdigest(), file.tell())


@contextmanager
def _or_nothing(path: Path, temporaries: Iterable[Path]) -> Iterator[None]:
    """Remove the temporary files after an error, and say of an OSError that `path` cannot be written."""
    try:
        yield
    except BaseException as error:
        for temporary in temporaries:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, StorageError):
            raise storage_error(path, error) from error
        raise
