"""Files behind http:// and https://: byte ranges that are checked against what was listed.

By the standard library: fsspec's HTTP file system looks neither at the range nor at the version that a server answers
with. Proxies are taken from the environment, passwords from the address or ~/.netrc.
"""

from __future__ import annotations

import base64
import http.client
import netrc
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from lora_clip.io.retry import ChangedError, TransientError
from lora_clip.io.stamps import Stamp, compare

STALLED = 30.0
"""Seconds without a byte after which a connection is given up."""
SLOW_SECONDS, SLOWEST = 60.0, 1024
"""A connection that has brought less than this many bytes a second for this many seconds is given up too."""
CHUNK = 1 << 18
RETRIED = {408, 425, 429}
SAFE = "/%:@!$&'()*+,;=~-._"


class HttpFile:
    """A file at an address; `whole` says that its server sends all of it, whatever range it is asked for."""

    def __init__(self, address: str) -> None:
        self._url, self._headers = _split(address)
        self.whole = False
        self._lock = threading.Lock()

    def turn(self) -> AbstractContextManager[Any]:
        """Held while fetching: where all is sent to everybody, nobody asks at the same time."""
        return self._lock if self.whole else nullcontext()

    def look(self) -> Stamp:
        """The file's stamp, from a request for its first byte: HEAD is refused where an address is signed for GET."""
        try:
            with closing(self._ask("bytes=0-0")) as answer:
                self.whole = answer.status != 206
                return _size(answer), _tag(answer)
        except _OutOfRangeError:
            return 0, ""

    def fetch(self, start: int, stop: int, expected: Stamp, take: Callable[[int, bytes], None]) -> None:
        """Bytes from `start` on, to `stop` at least, given to `take` with their offsets as they arrive.

        Raises ChangedError where the file is not the `expected` one.
        """
        try:
            with closing(self._ask(f"bytes={start}-{stop - 1}", _strong(expected[1]))) as answer:
                compare(expected, (_size(answer), _tag(answer)))
                if answer.status == 206:
                    _receive(answer, start, stop, take, _first_byte(answer))
                elif self.whole:
                    _receive(answer, 0, expected[0], take, 0)
                else:
                    self.whole = True
                    raise TransientError("the server sends the whole file in place of a range", after=0)
        except _OutOfRangeError as error:
            raise ChangedError(f"it ends before byte {start} of {expected[0]}") from error

    def _ask(self, bytes_wanted: str, tag: str = "") -> http.client.HTTPResponse:
        headers = {"Range": bytes_wanted, "Accept-Encoding": "identity", **({"If-Match": tag} if tag else {})}
        request = urllib.request.Request(self._url, headers=headers)
        for name, value in self._headers.items():
            request.add_unredirected_header(name, value)  # where we are sent to is somebody else
        try:
            return _opener().open(request, timeout=STALLED)
        except urllib.error.HTTPError as error:
            with closing(error):
                raise _refusal(error) from None
        except urllib.error.URLError as error:
            cause = error.reason if isinstance(error.reason, Exception) else None
            raise TransientError(f"{error.reason}") from cause
        except http.client.HTTPException as error:
            raise TransientError(f"the connection broke off ({type(error).__name__})") from None


class _OutOfRangeError(OSError):
    """The server says that the file ends before what was asked for."""


@cache
def _certificates() -> ssl.SSLContext:
    """Whom to trust: read once, which takes 20 ms of a core, and not for each range of each file."""
    return ssl.create_default_context()


def _opener() -> urllib.request.OpenerDirector:
    """What opens addresses, of these two schemes and no other, also where a server sends us on."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=_certificates()),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _split(address: str) -> tuple[str, dict[str, str]]:
    """The address without its password, and the headers that say who we are."""
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    known = (parts.username, parts.password) if parts.username else _from_netrc(parts.hostname or "")
    url = urlunsplit((parts.scheme, host, quote(parts.path, safe=SAFE), quote(parts.query, safe=SAFE + "?"), ""))
    if known is None:
        return url, {}
    pair = f"{unquote(known[0] or '')}:{unquote(known[1] or '')}".encode()
    return url, {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}


def _from_netrc(host: str) -> tuple[str, str | None] | None:
    try:
        found = netrc.netrc().authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return None
    return (quote(found[0]), quote(found[2] or "")) if found else None


def _refusal(error: urllib.error.HTTPError) -> OSError:
    status, said = error.code, f"HTTP {error.code} {error.reason}".strip()
    if status in RETRIED or status >= 500:
        return TransientError(said, _wish(error.headers.get("Retry-After")))
    if status == 412:
        return ChangedError("it has another ETag now")
    if status == 416:
        return _OutOfRangeError(said)
    if status in (401, 403):
        return PermissionError(13, f"{said}: not allowed; a signed address may have expired")
    if status in (404, 410):
        return FileNotFoundError(2, f"{said}: no such file")
    return PermissionError(1, said)


def _wish(after: str | None) -> float | None:
    """Seconds from a Retry-After header, which has a number or a date."""
    if after is None:
        return None
    try:
        return max(0.0, float(after) if after.strip().isdigit() else _seconds_until(after))
    except (TypeError, ValueError):
        return None


def _seconds_until(date: str) -> float:
    return parsedate_to_datetime(date).timestamp() - time.time()


def _size(answer: http.client.HTTPResponse) -> int:
    _, _, total = answer.headers.get("Content-Range", "").rpartition("/")
    length = total if answer.status == 206 else answer.headers.get("Content-Length", "")
    if not length.isdigit():
        raise PermissionError(1, "the server does not say how long the file is")
    return int(length)


def _tag(answer: http.client.HTTPResponse) -> str:
    return (answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "").strip()


def _strong(tag: int | str) -> str:
    """The tag where a server compares it: weak ones never match, and a date is none."""
    return tag if isinstance(tag, str) and tag.startswith('"') else ""


def _first_byte(answer: http.client.HTTPResponse) -> int:
    found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    if not found:
        raise TransientError("the server does not say which range it sends")
    return int(found.group(1))


def _receive(
    answer: http.client.HTTPResponse, start: int, stop: int, take: Callable[[int, bytes], None], first: int
) -> None:
    if first != start:
        raise TransientError(f"asked for bytes from {start} on, sent from {first} on")
    began, offset = time.monotonic(), start
    while offset < stop:
        try:
            chunk = answer.read1(min(CHUNK, stop - offset))
        except http.client.HTTPException as error:
            raise TransientError(f"the connection broke off ({type(error).__name__})") from None
        if not chunk:
            raise TransientError(f"the connection ended {stop - offset} bytes early")
        take(offset, chunk)
        offset += len(chunk)
        if (seconds := time.monotonic() - began) > SLOW_SECONDS and (offset - start) / seconds < SLOWEST:
            raise TransientError(f"the connection brought {offset - start} bytes in {seconds:.0f} s")
