"""An image from its URL: with time-outs, a size limit, and further tries where one may help.

Nothing but http and https is asked for, also where a server sends us elsewhere. Proxies are those of the environment.
"""

from __future__ import annotations

import http.client
import random
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import cache
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from lora_clip import __version__
from lora_clip.sources.files import UnreadableError

SCHEMES = ("http", "https")
SILENCE, WHOLE_TRY, ALL_TRIES = 20.0, 60.0, 120.0
"""Seconds: without a byte, for one try, and after which there is no further try."""
TRIES, FIRST_PAUSE, LONGEST_PAUSE = 4, 0.5, 30.0
MOST_BYTES = 200 << 20
CHUNK = 1 << 18
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
ALLOWED = "%/:=&?~#+!$,;'@()*[]"
DROPPED = (OSError, http.client.HTTPException)


class _Transient(Exception):  # noqa: N818
    """What another try may not meet; `pause` is how long the server asks us to wait, in seconds."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).scheme not in SCHEMES:
            fp.close()
            raise UnreadableError(f"the server leads to {urlsplit(newurl).scheme}:, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@cache
def opener() -> urllib.request.OpenerDirector:
    """What asks for URLs: unlike `urlopen` it knows no file:, ftp: or data:, and reads certificates once."""
    made = urllib.request.OpenerDirector()
    handlers: list[urllib.request.BaseHandler] = [
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(),
        urllib.request.HTTPErrorProcessor(),
    ]
    for handler in handlers:
        made.add_handler(handler)
    made.addheaders = [("User-Agent", f"lora-clip/{__version__}")]
    return made


def fetch(url: str, wait: Callable[[float], None] = time.sleep) -> bytes:
    """The bytes that a URL leads to. Raises UnreadableError, with the reason, where they cannot be had."""
    started = time.monotonic()
    for attempt in range(TRIES):
        try:
            return _once(url)
        except _Transient as failure:
            pause = failure.pause if failure.pause is not None else FIRST_PAUSE * 2**attempt * (0.5 + random.random())
            over = time.monotonic() + pause - started > ALL_TRIES
            if attempt + 1 == TRIES or over or pause > LONGEST_PAUSE:
                raise UnreadableError(f"{failure} (after {attempt + 1} tries)") from failure
        wait(pause)
    raise AssertionError("the last try returns or raises")


def _once(url: str) -> bytes:
    try:
        with opener().open(_ascii(url), timeout=SILENCE) as response:
            return _body(response)
    except urllib.error.HTTPError as error:
        error.close()
        said = f"HTTP {error.code} {error.reason}".strip()
        if error.code not in TRANSIENT:
            raise UnreadableError(said) from error
        raise _Transient(said, _asked_pause(error.headers)) from error
    except urllib.error.URLError as error:
        raise _failure(error.reason) from error
    except DROPPED as error:
        raise _failure(error) from error
    except ValueError as error:  # what is no URL at all
        raise UnreadableError(f"not a URL that can be asked for: {error}") from error


def _body(response: Any) -> bytes:
    """A response's body. Raises _Transient where it ends early or takes too long."""
    announced, since = response.length, time.monotonic()
    chunks, size = [], 0
    while chunk := response.read1(CHUNK) if (announced or 0) <= MOST_BYTES else b"":
        chunks.append(chunk)
        size += len(chunk)
        if size > MOST_BYTES:
            break
        if time.monotonic() - since > WHOLE_TRY:
            raise _Transient(f"not done after {WHOLE_TRY:.0f} s")
    if max(size, announced or 0) > MOST_BYTES:
        raise UnreadableError(f"larger than {MOST_BYTES >> 20} MiB")
    if announced is not None and size < announced:
        raise _Transient(f"the connection broke after {size} of {announced} bytes")
    return b"".join(chunks)


def _failure(reason: Any) -> Exception:
    """What a failure to connect or to read amounts to: worth another try, or not."""
    lasting = isinstance(reason, ssl.SSLCertVerificationError | http.client.InvalidURL | str)
    unknown = isinstance(reason, socket.gaierror) and reason.errno != socket.EAI_AGAIN
    said = "timed out" if isinstance(reason, TimeoutError) else str(reason) or type(reason).__name__
    return UnreadableError(said) if lasting or unknown else _Transient(said)


def _asked_pause(headers: Any) -> float | None:
    asked = headers.get("Retry-After", "") if headers else ""
    return float(asked) if asked.isdigit() else None


def _ascii(url: str) -> str:
    """A URL as it goes over the wire: people write spaces and umlauts into it."""
    parts = urlsplit(url.strip())
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    return urlunsplit((parts.scheme, host, *(quote(part, ALLOWED) for part in (parts.path, parts.query)), ""))
