"""As much of the Hugging Face hub as its own library asks for: one data set, me/photos, whose commits are kept."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote

API, FILES = "/api/datasets/me/photos", "/datasets/me/photos/resolve/"


@dataclass
class Hub:
    """The data set: each commit's files, the last of which is `main`; and what was asked for."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})
    requests: list[str] = field(default_factory=list)
    address: str = ""

    def put(self, path: str, content: bytes) -> str:
        """Commit a file; its address."""
        files = {**self.files("main"), path: content}
        self.commits[hashlib.sha1(repr((len(self.commits), path)).encode()).hexdigest()] = files
        return f"hf://datasets/me/photos/{path}"

    def files(self, revision: str) -> dict[str, bytes]:
        """The files of a commit, or of `main`."""
        return self.commits[list(self.commits)[-1] if revision == "main" else revision]


@contextlib.contextmanager
def hub() -> Iterator[Hub]:
    """A hub at `hub.address` as long as the context lasts."""
    served = Hub()
    handler = type("Handler", (_Handler,), {"hub": served})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    served.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    oid = hashlib.sha1(content).hexdigest()
    return {"type": "file", "oid": oid, "size": len(content), "path": path, "lfs": lfs}


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        wanted = json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode())["paths"]
        files = self.hub.files(unquote(self.path.rpartition("/")[2]))
        self._say([found for path in wanted for found in self._entries(files, path)])

    def _entries(self, files: dict[str, bytes], path: str) -> list[dict[str, Any]]:
        if path in files:
            return [_entry(path, files[path])]
        below = any(name.startswith(f"{path}/") for name in files)
        return [{"type": "directory", "oid": "d" * 40, "size": 0, "path": path}] if below else []

    def do_GET(self) -> None:
        path, _, query = unquote(self.path).partition("?")
        self.hub.requests.append(path)
        if tree := re.fullmatch(rf"{API}/tree/([^/]+)/?(.*)", path):
            self._list(self.hub.files(tree[1]), tree[2], "recursive=true" in query.lower())
        elif path.startswith(API):
            last = path.rpartition("/")[2]
            commit = last if last in self.hub.commits else list(self.hub.commits)[-1]
            self._say({"id": "me/photos", "sha": commit, "private": False, "siblings": [], "tags": []})
        elif path.startswith(FILES):
            revision, _, name = path.removeprefix(FILES).partition("/")
            self._send(self.hub.files(revision).get(name))
        else:
            self._refuse()

    do_HEAD = do_GET

    def _list(self, files: dict[str, bytes], folder: str, all_below: bool) -> None:
        prefix = f"{folder}/" if folder else ""
        below = {name: data for name, data in files.items() if name.startswith(prefix)}
        if not below:
            return self._refuse()
        paths = {name if all_below else prefix + name.removeprefix(prefix).partition("/")[0] for name in below}
        return self._say([entry for path in sorted(paths) for entry in self._entries(files, path)])

    def _send(self, content: bytes | None) -> None:
        if content is None:
            return self._refuse()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or f"bytes=0-{len(content)}")
        assert asked
        start, stop = int(asked[1]), min(int(asked[2]) + 1, len(content))
        self.send_response(206)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[start:stop])
        return None

    def _say(self, what: Any) -> None:
        body = json.dumps(what).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing."""
