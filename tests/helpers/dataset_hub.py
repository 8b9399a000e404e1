"""A Hugging Face hub of our own: its cache as it lies on disk, and a server of the few addresses that are asked for."""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT, CONVERTED = "a" * 40, "b" * 40


def cache(root: Path, name: str, files: dict[str, bytes], commit: str = COMMIT, ref: str = "main") -> Path:
    """Files of a dataset in the layout of the hub's cache."""
    folder = root / f"datasets--{name.replace('/', '--')}"
    for file, content in files.items():
        path = folder / "snapshots" / commit / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / ref).write_text(commit)
    return root


class Server(ThreadingHTTPServer):
    """The dataset `org/name` with its revisions (commit, files); what was asked of it."""

    def __init__(self, revisions: dict[str, tuple[str, dict[str, bytes]]], gated: bool) -> None:
        super().__init__(("127.0.0.1", 0), Hub)
        self.revisions, self.gated = revisions, gated
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def revision(self, named: str) -> tuple[str, dict[str, bytes]] | None:
        """By its name or commit."""
        by_commit = {commit: (commit, files) for commit, files in self.revisions.values()}
        return self.revisions.get(named) or by_commit.get(named)


class Hub(BaseHTTPRequestHandler):
    """The addresses of a dataset's description and of its files."""

    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        path = self.path.partition("?")[0].replace("%2F", "/")
        if not path.startswith(("/api/datasets/org/name", "/datasets/org/name")):
            return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if self.server.gated:
            return self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        if path.startswith("/api/"):
            return self.describe(path.partition("/revision/")[2] or "main")
        commit, _, file = path.partition("/resolve/")[2].partition("/")
        found = self.server.revision(commit)
        if found is None or file not in found[1]:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        tag = f'"{commit[:8]}-{zlib.crc32(found[1][file])}"'
        return self.answer(200, found[1][file], {"X-Repo-Commit": commit, "ETag": tag})

    do_HEAD = do_GET

    def describe(self, revision: str) -> None:
        """A revision as the hub describes it."""
        found = self.server.revision(revision)
        if found is None:
            return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        siblings = [{"rfilename": file, "size": len(content)} for file, content in found[1].items()]
        about = {"id": "org/name", "sha": found[0], "siblings": siblings, "private": False, "tags": []}
        return self.answer(200, json.dumps(about).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        """Send it."""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def serve(revisions: dict[str, tuple[str, dict[str, bytes]]], gated: bool = False) -> Iterator[Server]:
    """Serve the dataset `org/name` on a port of this machine."""
    server = Server(revisions, gated)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
