"""What an output in a bucket is made of: objects that are put, made once, listed and removed, with retries."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple, TypeVar

from lora_clip.errors import OutputError, StorageError
from lora_clip.io.addresses import redacted
from lora_clip.io.buckets import client, status_of
from lora_clip.io.retry import persist

TIMES = ("LastModified", "updated", "mtime", "created")
Result = TypeVar("Result")
_memory = threading.Lock()
"""fsspec's memory looks and writes in two steps."""


class Object(NamedTuple):
    """What a listing says of an object: its bytes, and when it was put, in seconds by the bucket's clock."""

    st_size: int
    time: float

    def stat(self) -> Object:
        """As a folder's entry has it."""
        return self


class Objects:
    """The objects below an address, by their names below it. Raises StorageError where no try helps."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")

    def _path(self, name: str) -> str:
        return str(client(self.address)._strip_protocol(f"{self.address}/{name}"))

    def _try(self, name: str, attempt: Callable[[], Result]) -> Result:
        try:
            return persist(attempt)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageError(
                f"cannot use {redacted(self.address)}/{name}: {error.strerror or error}. What is finished is safe: "
                "type the same command again"
            ) from error

    def make(self, name: str, data: bytes) -> bool:
        """Put an object that is not there; whether it is this very content that stands there then.

        A reply that got lost is tried again, and then finds what this call has made itself.
        """
        return self._try(name, lambda: self._create(self._path(name), data)) or self.read(name) == data

    def _create(self, path: str, data: bytes) -> bool:
        files = client(self.address)
        try:
            if self.address.startswith("memory:"):
                with _memory:
                    files.pipe_file(path, data, mode="create")
            else:
                files.pipe_file(path, data, mode="create")
        except Exception as error:
            # 409: another one is just being made
            if isinstance(error, FileExistsError) or 412 in (status_of(error), getattr(error, "code", None)):
                return False
            raise
        return True

    def put(self, name: str, data: bytes) -> None:
        """Put an object, in place of another one too."""
        self._try(name, lambda: client(self.address).pipe_file(self._path(name), data))

    def read(self, name: str) -> bytes | None:
        """An object's content; None where there is none."""
        return self.read_all([name]).get(name)

    def read_all(self, names: Iterable[str]) -> dict[str, bytes]:
        """The contents of those that are there, many requests at a time."""
        paths = {self._path(name): name for name in names}
        if not paths:
            return {}
        return self._try(next(iter(paths.values())), lambda: self._cat(paths))

    def _cat(self, paths: dict[str, str]) -> dict[str, bytes]:
        found = client(self.address).cat(list(paths), on_error="return")
        failed = [one for one in found.values() if isinstance(one, Exception)]
        for error in failed:
            if not isinstance(error, FileNotFoundError):
                raise error
        return {paths[path]: one for path, one in found.items() if not isinstance(one, Exception)}

    def time(self, name: str) -> float | None:
        """When an object was put; None where there is none."""
        try:
            client(self.address).invalidate_cache()
            return _object(self._try(name, lambda: client(self.address).info(self._path(name)))).time
        except FileNotFoundError:
            return None

    def listed(self, folder: str) -> dict[str, Object]:
        """The objects directly in a folder, by their names in it."""
        return {
            path.rpartition("/")[2]: _object(info)
            for path, info in self._listed(folder, "ls").items()
            if info.get("type") != "directory"
        }

    def below(self, folder: str) -> list[str]:
        """The names of all objects below a folder."""
        start = len(self._path("x")) - 1
        return [path[start:] for path in self._listed(folder, "find")]

    def _listed(self, folder: str, how: str) -> dict[str, Any]:
        def listing() -> dict[str, Any]:
            files = client(self.address)
            files.invalidate_cache()
            found = getattr(files, how)(self._path(folder), detail=True)
            return found if isinstance(found, dict) else {info["name"]: info for info in found}

        try:
            return self._try(folder, listing)
        except FileNotFoundError:
            return {}

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects, those that are not there any more too."""
        for name in names:
            with suppress(FileNotFoundError):
                self._try(name, partial(client(self.address).rm_file, self._path(name)))

    def _made(self, name: str) -> bool:
        try:
            return self.make(name, b"1")
        except FileNotFoundError as error:
            raise OutputError(f"{redacted(self.address)}: there is no such bucket") from error

    def require_make(self) -> None:
        """Raises OutputError where the bucket lets two make the same object: it knows no conditional put."""
        name = f"shared/probe-{os.urandom(4).hex()}"
        try:
            if not self._made(name) or self.make(name, b"2"):
                raise OutputError(
                    f"{redacted(self.address)} ignores If-None-Match: two jobs would commit the same images there. "
                    "Write to a local output_dir, and copy it when it is finished"
                )
        finally:
            self.remove([name])


def _object(info: dict[str, Any]) -> Object:
    time = next((info[key] for key in TIMES if info.get(key)), 0.0)
    if isinstance(time, str):
        time = datetime.fromisoformat(time)
    return Object(int(info.get("size") or 0), time.timestamp() if isinstance(time, datetime) else float(time))
