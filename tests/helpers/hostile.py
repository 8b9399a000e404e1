"""An HTTP server that serves a folder as it is told to: it drops, stalls, truncates, refuses, and counts all of it.

In a process's own thread for unit tests: `with serving(folder) as web: … web.url("0.tar")`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_RDWR
from typing import Any

Trouble = Callable[["Request"], str | None]
"""Says what goes wrong with a request: `drop`, `truncate`, `stall`, a status such as `503` or `429 1`, or None."""


@dataclass(frozen=True)
class Request:
    """A request as it came: `number` counts those of all files from 0, `start` and `stop` are the range's."""

    number: int
    name: str
    query: str
    start: int
    stop: int | None
    headers: Any


@dataclass
class Web:
    """What the server does and has done; change it while it runs."""

    folder: Path
    trouble: Trouble = lambda request: None
    ranges: bool = True
    tags: bool = True
    password: str | None = None
    delay: float = 0.0
    port: int = 0
    requests: list[Request] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    lock: Any = field(default_factory=threading.Lock)

    def url(self, name: str, secret: str = "") -> str:
        """The address of a file, with `user:password@` where asked for."""
        return f"http://{secret}127.0.0.1:{self.port}/{name}"


@contextlib.contextmanager
def serving(folder: Path, **how: Any) -> Iterator[Web]:
    """The folder at `web.url(name)` as long as the context lasts."""
    web = Web(folder, **how)
    handler = type("Handler", (_Handler,), {"web": web})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    web.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    web: Web
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        web = self.web
        path, _, query = self.path.partition("?")
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start, stop = (int(asked[1]), int(asked[2]) + 1 if asked[2] else None) if asked else (0, None)
        with web.lock:
            request = Request(len(web.requests), path.lstrip("/"), query, start, stop, self.headers)
            web.requests.append(request)
        time.sleep(web.delay)
        with contextlib.suppress(ConnectionError):
            self._answer(request, web.trouble(request))
        self.close_connection = True

    def _answer(self, request: Request, trouble: str | None) -> None:
        web, file = self.web, self.web.folder / request.name
        if trouble == "drop":
            self.connection.shutdown(SHUT_RDWR)
        elif trouble and trouble[0].isdigit():
            status, _, after = trouble.partition(" ")
            self._refuse(int(status), {("Location" if status[0] == "3" else "Retry-After"): after} if after else {})
        elif web.password and not self._may_enter():
            self._refuse(401)
        elif not file.is_file():
            self._refuse(404)
        else:
            self._send(request, file.read_bytes(), trouble)

    def _may_enter(self) -> bool:
        expected = base64.b64encode((self.web.password or "").encode()).decode()
        return self.headers.get("Authorization") == f"Basic {expected}"

    def _refuse(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": "0", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, request: Request, data: bytes, trouble: str | None) -> None:
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        wanted = self.headers.get("If-Match")
        if wanted and wanted != tag:
            return self._refuse(412)
        ranged = self.web.ranges and self.headers.get("Range") is not None
        if ranged and request.start >= len(data):
            return self._refuse(416, {"Content-Range": f"bytes */{len(data)}"})
        start, stop = (request.start, min(request.stop or len(data), len(data))) if ranged else (0, len(data))
        body = data[start : start + (stop - start) // 2] if trouble in ("truncate", "stall") else data[start:stop]
        with self.web.lock:  # before anybody can have seen anything of the answer
            self.web.sent[request.name] += len(body)
        self.send_response(206 if ranged else 200)
        self.send_header("Content-Length", str(stop - start))
        if ranged:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        if self.web.tags:
            self.send_header("ETag", tag)
        self.end_headers()
        self.wfile.write(body)
        if trouble == "stall":
            time.sleep(60)
        return None

    def log_message(self, *_: Any) -> None:
        """Nothing."""
