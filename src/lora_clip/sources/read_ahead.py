"""Several things asked for at once, and given out in their order: threads that hide how long each takes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Generic, TypeVar

Item = TypeVar("Item")

IN_FLIGHT, AHEAD, MOST_HELD = 32, 96, 256 << 20
"""Requests at once, items that are begun or waiting, and bytes that wait."""


class ReadAhead(Generic[Item]):
    """Runs `job(item)` for items to come, in threads that end with the process, for those that `wants` chooses.

    `IN_FLIGHT` jobs run at a time; no more are begun while `MOST_HELD` bytes wait to be taken.
    """

    def __init__(self, job: Callable[[Item], bytes], wants: Callable[[Item], bool]) -> None:
        self._job, self._wants = job, wants
        self._queue: SimpleQueue[tuple[Item, Future[bytes]] | None] = SimpleQueue()
        self._threads = 0
        self._closed = False

    def __call__(self, items: Iterable[Item]) -> Iterator[tuple[Item, Future[bytes] | None]]:
        """Each item with its job, done or failed or still running; None for items that are not wanted."""
        waiting: deque[tuple[Item, Future[bytes] | None]] = deque()
        coming = iter(items)
        more = True
        try:
            while more or waiting:
                while more and len(waiting) < AHEAD and _held(waiting) < MOST_HELD:
                    item = next(coming, None)
                    if item is None:
                        more = False
                    else:
                        waiting.append((item, self._begin(item) if self._wants(item) else None))
                if waiting:
                    yield waiting.popleft()
        finally:
            self._closed = True
            for _ in range(self._threads):
                self._queue.put(None)

    def _begin(self, item: Item) -> Future[bytes]:
        future: Future[bytes] = Future()
        self._queue.put((item, future))
        if self._threads < IN_FLIGHT:
            self._threads += 1
            threading.Thread(target=self._work, daemon=True).start()
        return future

    def _work(self) -> None:
        while (task := self._queue.get()) is not None and not self._closed:
            item, future = task
            try:
                future.set_result(self._job(item))
            except BaseException as error:
                future.set_exception(error)


def _held(waiting: Iterable[tuple[Item, Future[bytes] | None]]) -> int:
    """The bytes of the jobs that are done."""
    done = (future for _, future in waiting if future is not None and future.done() and future.exception() is None)
    return sum(len(future.result()) for future in done)
