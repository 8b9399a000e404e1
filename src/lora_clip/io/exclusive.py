"""Files that are made once: of several processes, on several machines too, that make the same file one succeeds."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from lora_clip.errors import StorageError
from lora_clip.io.atomic import sync_file, sync_folder, temporary_name

REFUSED = "cannot make {path} so that only one of several jobs makes it ({why}): share=true needs hard links"


def create_new(path: Path, data: bytes, durable: bool = True) -> bool:
    """Make a file with all its content, unless there is one already; whether this call made it.

    A hard link from a temporary file: it exists whole or not at all, on network file systems too, and no two links
    make the same name. With `durable` it is on disk then. Raises FileNotFoundError where the folder is not there,
    StorageError where the file system knows no hard links.
    """
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            if durable:
                sync_file(file)
        made = _link(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    if made and durable:
        sync_folder(path.parent)
    return made


def _link(temporary: Path, path: Path) -> bool:
    try:
        os.link(temporary, path)
    except FileExistsError:
        # a network file system that lost its answer asks again, and then finds what it has made itself
        return temporary.stat().st_nlink > 1
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(REFUSED.format(path=path, why=error.strerror or error)) from error
    return True
