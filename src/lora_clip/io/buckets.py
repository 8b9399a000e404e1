"""Objects in buckets and on the Hugging Face hub, by fsspec: listed, and read by ranges that are checked.

Credentials are found by the cloud's own library, where it looks for them. Clients are made in the process that uses
them: their event loop does not survive a fork.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from lora_clip.errors import ConfigError
from lora_clip.extras import require
from lora_clip.io.addresses import redacted, scheme_of
from lora_clip.io.retry import ChangedError, TransientError
from lora_clip.io.stamps import Stamp, compare, stamp_from

STALLED, CHUNK = 30.0, 1 << 18
Take = Callable[[int, bytes], None]


class Needs(NamedTuple):
    """What a scheme takes: the extra of this package, and the module that it brings."""

    extra: str
    module: str


SCHEMES = {
    "s3": Needs("lora-clip[s3]", "s3fs"),
    "gs": Needs("lora-clip[gs]", "gcsfs"),
    "hf": Needs("lora-clip[hf]", "huggingface_hub"),
    "memory": Needs("fsspec", "fsspec"),
}
_clients: dict[tuple[int, str], Any] = {}
_lock = threading.Lock()
os.register_at_fork(after_in_child=lambda: globals().update(_lock=threading.Lock()))


def client(address: str) -> Any:
    """The file system of an address, made in the process that asks.

    Raises ConfigError where its package is not installed, and for a password in the address.
    """
    scheme = scheme_of(address)
    if "@" in address.partition("://")[2].partition("/")[0]:
        raise ConfigError(
            f"{redacted(address)}: a password in the address is not taken for {scheme}://; it belongs where the "
            "cloud's own tools look for it (environment variables, its configuration files, the machine's role)"
        )
    require(*SCHEMES[scheme])
    import fsspec.asyn

    with _lock:
        key = os.getpid(), scheme
        if key not in _clients:
            if any(pid != key[0] for pid, _ in _clients):
                fsspec.asyn.reset_lock()  # the parent's loop has no thread here
                _clients.clear()
            _clients[key] = fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False)
            _clients[key].retries = 1  # s3fs counts its own tries, and ours are enough
        return _clients[key]


class BucketFile:
    """An object of any file system of fsspec: what is read counts once the object is seen to be the same after it."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._path = client(address)._strip_protocol(address)

    def turn(self) -> AbstractContextManager[Any]:
        """Nothing to wait for: ranges are served to many at once."""
        return nullcontext()

    def look(self) -> Stamp:
        """The object's stamp, asked for anew. Raises FileNotFoundError where there is no such object."""
        files = client(self._address)
        files.invalidate_cache()
        found = files.info(self._path)
        if found.get("type") == "directory":
            raise IsADirectoryError(errno.EISDIR, "a folder, and no file")
        return stamp_from(found)

    def fetch(self, start: int, stop: int, expected: Stamp, take: Take) -> None:
        """The bytes [start, stop), given to `take`. Raises ChangedError where the object is not the `expected` one."""
        data = client(self._address).cat_file(self._path, start=start, end=stop)
        compare(expected, self.look())
        if len(data) != stop - start:
            raise TransientError(f"{len(data)} bytes came, {stop - start} were asked for")
        take(start, data)


class S3File(BucketFile):
    """An object of S3, which says in the same answer whether it is still the one that was listed."""

    def fetch(self, start: int, stop: int, expected: Stamp, take: Take) -> None:
        """The bytes [start, stop), given to `take`. Raises ChangedError where the object is not the `expected` one."""
        from fsspec.asyn import sync

        files = client(self._address)
        try:
            sync(files.loop, self._fetch, files, start, stop, expected, take)
        except OSError as error:
            if status_of(error) in (412, 416):
                raise ChangedError("it has another ETag now") from None
            raise

    async def _fetch(self, files: Any, start: int, stop: int, expected: Stamp, take: Take) -> None:
        bucket, key, version = files.split_path(self._path)
        wanted = {"Bucket": bucket, "Key": key, "Range": f"bytes={start}-{stop - 1}"}
        wanted |= {"VersionId": version} if version else {}
        wanted |= {"IfMatch": f'"{expected[1]}"'} if expected[1] else {}
        answer = await files._call_s3("get_object", **wanted)
        total = answer.get("ContentRange", "").rpartition("/")[2]
        size = int(total) if total.isdigit() else answer["ContentLength"]
        compare(expected, stamp_from({"size": size, "ETag": answer.get("ETag")}))
        if not total and (start, stop) != (0, size):
            raise NotImplementedError("the server sends the whole object in place of a range")
        async with answer["Body"] as body:
            offset = start
            while offset < stop:
                chunk = await asyncio.wait_for(body.read(min(CHUNK, stop - offset)), STALLED)
                if not chunk:
                    raise TransientError(f"the connection ended {stop - offset} bytes early")
                take(offset, chunk)
                offset += len(chunk)


class HubFile(BucketFile):
    """A file of a Hugging Face repository, read from the commit in which it was seen to be the listed one.

    A commit never changes, so that nothing need be asked after each range; and a listing of its folder may be long.
    """

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._pinned, self._pinning = "", threading.Lock()

    def look(self) -> Stamp:
        """The file's stamp, asked for anew. Raises FileNotFoundError where there is no such file."""
        return self._look(client(self._address).resolve_path(self._path))

    def _look(self, where: Any, revision: str | None = None) -> Stamp:
        which = {"repo_type": where.repo_type, "revision": revision or where.revision}
        found = client(self._address)._api.get_paths_info(where.repo_id, [where.path_in_repo], **which)
        if not found:
            raise FileNotFoundError(errno.ENOENT, "no such file")
        if not hasattr(found[0], "size"):
            raise IsADirectoryError(errno.EISDIR, "a folder, and no file")
        return stamp_from({"size": found[0].size, "lfs": found[0].lfs, "blob_id": found[0].blob_id})

    def fetch(self, start: int, stop: int, expected: Stamp, take: Take) -> None:
        """The bytes [start, stop), given to `take`. Raises ChangedError where the file is not the `expected` one."""
        with self._pinning:
            self._pinned = self._pinned or self._pin(expected)
        data = client(self._address).cat_file(self._pinned, start=start, end=stop)
        if len(data) != stop - start:
            raise TransientError(f"{len(data)} bytes came, {stop - start} were asked for")
        take(start, data)

    def _pin(self, expected: Stamp) -> str:
        from huggingface_hub.constants import REPO_TYPES_URL_PREFIXES

        files = client(self._address)
        where = files.resolve_path(self._path)
        commit = files._api.repo_info(where.repo_id, repo_type=where.repo_type, revision=where.revision).sha
        compare(expected, self._look(where, commit))
        return f"{REPO_TYPES_URL_PREFIXES.get(where.repo_type, '')}{where.repo_id}@{commit}/{where.path_in_repo}"


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error of botocore stands for, or None."""
    response = getattr(error.__cause__ or error, "response", None)
    return response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None


def list_below(address: str) -> dict[str, Stamp]:
    """All objects below a folder, by address. Raises FileNotFoundError where there is none."""
    return _addressed(address, client(address).find(client(address)._strip_protocol(address), detail=True))


def list_matching(pattern: str) -> dict[str, Stamp]:
    """All objects that a glob matches, by address."""
    return _addressed(pattern, client(pattern).glob(client(pattern)._strip_protocol(pattern), detail=True))


def list_folder(address: str) -> dict[str, Stamp]:
    """The objects of one folder and not of those below it, by address."""
    found = client(address).ls(client(address)._strip_protocol(address), detail=True)
    return _addressed(address, {info["name"]: info for info in found})


def is_folder(address: str) -> bool:
    """Whether there are objects below an address, and none at it."""
    return client(address).isdir(client(address)._strip_protocol(address))


def _addressed(address: str, found: dict[str, Any]) -> dict[str, Stamp]:
    scheme = scheme_of(address)
    files = {name: info for name, info in found.items() if info.get("type") != "directory"}
    return {f"{scheme}://{name.removeprefix('/')}": stamp_from(info) for name, info in sorted(files.items())}
