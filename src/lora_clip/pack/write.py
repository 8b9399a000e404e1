"""One tar of listed files: there whole or not at all, and of a size that is known before it is written."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from lora_clip.errors import DataError
from lora_clip.io.atomic import replaced
from lora_clip.pack.listing import ListedFile


def write_shard(
    images_dir: Path,
    target: Path,
    members: Sequence[ListedFile],
    after: Callable[[ListedFile], None] = lambda member: None,
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


def _add(tar: tarfile.TarFile, images_dir: Path, member: ListedFile) -> None:
    path = images_dir / member.path
    with _reading(path):
        file = path.open("rb")
    with file:
        before = os.fstat(file.fileno())
        if before.st_size != member.size:
            raise _changed(path)
        tar.addfile(_header(member), _InputFile(file, path))
        now = os.fstat(file.fileno())
        if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise _changed(path)


def _header(member: ListedFile) -> tarfile.TarInfo:
    info = tarfile.TarInfo(member.path)  # its defaults name no owner and no time: mode 0644, uid = gid = mtime = 0
    info.size = member.size
    return info


class _InputFile:
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


def tar_size(members: Iterable[ListedFile]) -> int:
    """The size in bytes of the tar that `write_shard` makes."""
    content = sum(map(stored_size, members)) + 2 * tarfile.BLOCKSIZE
    return -(-content // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def stored_size(member: ListedFile) -> int:
    """How many bytes of a tar a file takes, its header included."""
    is_plain = len(member.path) <= tarfile.LENGTH_NAME and member.path.isascii() and member.size < 8**11
    header = tarfile.BLOCKSIZE if is_plain else len(_header(member).tobuf(tarfile.PAX_FORMAT, "utf-8"))
    return header + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
