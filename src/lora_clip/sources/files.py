"""Single files that a source names: read whole, none that blocks, and none outside a folder where that was said."""

from __future__ import annotations

import errno
import stat
from pathlib import Path, PurePosixPath

from lora_clip.errors import DataError

LASTING = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}


class UnreadableError(Exception):
    """A file that is not there, or not to be read, whoever tries again."""


def read_file(path: str) -> bytes:
    """A regular file's bytes; a pipe is never opened, since that would wait for ever.

    Raises UnreadableError where there is no such file, DataError for an I/O error, which another try may not meet.
    """
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise UnreadableError("not a regular file")
        return Path(path).read_bytes()
    except OSError as error:
        if error.errno in LASTING:
            raise UnreadableError(error.strerror) from error
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # a name with a zero byte
        raise UnreadableError(str(error)) from error


def read_below(folder: str, name: str) -> bytes:
    """The file that some data names, which must lie below `folder`, links followed: data may not name any other.

    Raises UnreadableError where the name leads elsewhere, and as `read_file`.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "://" in name or "\\" in name or "\0" in name:
        raise UnreadableError(f"{name!r} is not a path below the file's own folder")
    try:
        inside = Path(folder, name).resolve().is_relative_to(Path(folder).resolve())
    except (OSError, RuntimeError) as error:
        raise UnreadableError(f"{name!r} leads nowhere") from error
    if not inside:
        raise UnreadableError(f"{name!r} leads out of the file's own folder")
    return read_file(f"{folder}/{name}")
