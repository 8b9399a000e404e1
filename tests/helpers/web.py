"""A web server on this machine that does what a test tells it to, for URLs of images."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[BaseHTTPRequestHandler, int], None]
"""What is done with a request, the how-manieth of its path it is."""


class Web:
    """A running server: its address, its answers by path, and how often each path was asked for."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.address = f"http://127.0.0.1:{server.server_address[1]}"
        self.answers: dict[str, Answer] = {}
        self.asked: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    def url(self, path: str, answer: Answer) -> str:
        """The URL of a path that is answered like this."""
        self.answers[path] = answer
        return self.address + path


def body(data: bytes, status: int = 200, announced: int | None = None, **headers: str) -> Answer:
    """An answer of these bytes; with `announced`, as if they were so many."""

    def answer(request: BaseHTTPRequestHandler, number: int) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(data) if announced is None else announced))
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(data)

    return answer


def after(failures: list[Answer], then: Answer) -> Answer:
    """One answer after the other, and the last for ever."""

    def answer(request: BaseHTTPRequestHandler, number: int) -> None:
        (failures[number] if number < len(failures) else then)(request, number)

    return answer


def hang_up(request: BaseHTTPRequestHandler, number: int) -> None:
    """No answer: the connection is closed."""
    request.close_connection = True


@contextmanager
def serving() -> Iterator[Web]:
    """A server for the length of a block."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            with web.lock:
                number, web.asked[path] = web.asked[path], web.asked[path] + 1
                web.at_once += 1
                web.most_at_once = max(web.most_at_once, web.at_once)
            try:
                web.answers.get(path, body(b"", 404))(self, number)
            except ConnectionError:  # who asked has gone
                pass
            finally:
                with web.lock:
                    web.at_once -= 1

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.request_queue_size = 64
    web = Web(server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
