"""Remote files as RangeReaders, and what was listed of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from lora_clip.errors import ConfigError
from lora_clip.io import buckets
from lora_clip.io.addresses import complete, redacted, scheme_of
from lora_clip.io.http import HttpFile
from lora_clip.io.retry import persist
from lora_clip.io.spool import RemoteFile, Spool
from lora_clip.io.stamps import Stamp

FILES: dict[str, Callable[[str], RemoteFile]] = {
    "http": HttpFile,
    "https": HttpFile,
    "s3": buckets.S3File,
    "gs": buckets.BucketFile,
    "hf": buckets.HubFile,
    "memory": buckets.BucketFile,
}
"""By scheme. Another one that fsspec reads is a line here and one in `buckets.SCHEMES`."""
SPOOLS = 2
"""How many files a process keeps spooled: the one that it reads, and the one before, of which ranges may be left."""
LOOKS_AT_ONCE = 16

_listed: dict[str, Stamp] = {}
_spools: dict[str, Spool] = {}
_owner = [os.getpid()]
_lock = threading.RLock()
os.register_at_fork(after_in_child=lambda: globals().update(_lock=threading.RLock()))


def open_remote(address: str) -> RemoteFile:
    """The file at an address, of which nothing is asked yet; `address` may be without its secrets.

    Raises ConfigError for a scheme that is not read, or whose package is not installed.
    """
    scheme = scheme_of(address)
    if scheme not in FILES:
        known = ", ".join(f"{name}://" for name in FILES)
        raise ConfigError(f"{redacted(address)}: {scheme}:// is not read; {known} are, and local paths")
    return FILES[scheme](complete(address))


def note_listed(stamps: dict[str, Stamp]) -> None:
    """Keep what a listing says of files: each is opened once without being asked again."""
    with _lock:
        _listed.update(stamps)


def was_listed(address: str) -> bool:
    """Whether a listing showed the file, and it was not opened since."""
    with _lock:
        return address in _listed


def look_at(addresses: Iterable[str]) -> Iterator[tuple[str, Stamp | OSError]]:
    """The stamps of many files, in order, several asked for at a time; or the OSError that says why there is none."""
    pool = ThreadPoolExecutor(LOOKS_AT_ONCE, thread_name_prefix="lora-clip listing")
    try:
        asked = [(address, pool.submit(_look, address)) for address in addresses]
        yield from ((address, answer.result()) for address, answer in asked)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _look(address: str) -> Stamp | OSError:
    try:
        return persist(open_remote(address).look)
    except OSError as error:
        return error


class RemoteRanges:
    """A RangeReader of a remote file; what was fetched stays spooled for who opens it next.

    With an `expected` stamp the file is not asked for its own: it is another one as soon as a range says so.
    """

    def __init__(self, address: str, expected: Stamp | None = None) -> None:
        self._spool = _spool(address, expected)
        self.size, self.stamp = self._spool.size, self._spool.stamp

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes [offset, offset + length), fewer only beyond `size`."""
        return self._spool.read_at(offset, length)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def _spool(address: str, expected: Stamp | None) -> Spool:
    """The file's spool in this process; the least recently opened ones are forgotten."""
    file = open_remote(address)
    with _lock:
        stamp = expected or _listed.pop(address, None)
    stamp = stamp or persist(file.look)
    with _lock:
        _inherit()
        spool = _spools.pop(address, None)
        _spools[address] = spool if spool is not None and spool.stamp == stamp else Spool(file, stamp)
        while len(_spools) > SPOOLS:
            del _spools[next(iter(_spools))]
        return _spools[address]


def _inherit() -> None:
    """In a forked process: go on with what its parent had spooled."""
    if _owner[0] != os.getpid():
        _owner[0] = os.getpid()
        _spools.update({name: spool.inherited(open_remote(name)) for name, spool in _spools.items()})
