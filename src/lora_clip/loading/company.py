"""Ranks say that they live, and hear whether the others do: one that is frozen or cut off closes no connection.

Rank 0 listens to all, the others to rank 0. Nobody is given up by a rank that still has work: only where nothing has
come for as long, be it that the rank waits for the others at the end, for one that counts a shard, or for the store.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from lora_clip.errors import PeerError
from lora_clip.loading.counters import Store

SECONDS_BETWEEN_WORDS = 3.0
SECONDS_BETWEEN_LOOKS = 1.0
PATIENCE = 120.0
"""Seconds without a word after which a rank is given up."""
NAMED = 5


class Company:
    """The other ranks of a job, as far as this one hears of them.

    `lost` gets a PeerError when one was given up, in a thread of its own: the main thread may wait where nothing but
    the end of the process reaches it.
    """

    def __init__(self, counters: Store, rank: int, ranks: int, lost: Callable[[PeerError], Any]) -> None:
        self._words = Store(counters.host, counters.port, f"{counters.run}/words")
        self._rank, self._lost = rank, lost
        self._worked = time.monotonic()
        self._heard = dict.fromkeys(range(1, ranks) if rank == 0 else (0,), (0, self._worked))
        self._left = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._talk, self._watch)]
        for thread in self._threads:
            thread.start()

    def at_work(self) -> None:
        """Note that there is work to do yet."""
        self._worked = time.monotonic()

    def leave(self) -> None:
        """Neither talk nor listen any more."""
        self._left.set()

    def _talk(self) -> None:
        """Say that this rank lives, and listen; a store that is frozen too holds this thread for ever."""
        with suppress(RuntimeError):  # a store that is gone: nothing will be heard
            while not self._left.wait(SECONDS_BETWEEN_WORDS):
                self._words.add(self._rank, 1)
                for rank, (before, _) in self._heard.items():
                    if (words := self._words.peek(rank)) != before:
                        self._heard[rank] = words, time.monotonic()

    def _watch(self) -> None:
        while not self._left.wait(SECONDS_BETWEEN_LOOKS):
            longest = time.monotonic() - PATIENCE
            silent = [rank for rank, (_, heard) in self._heard.items() if heard < longest]
            if silent and self._worked < longest:
                self._lost(PeerError(_told(silent)))
                return


def _told(silent: list[int]) -> str:
    named = ", ".join(map(str, silent[:NAMED])) + (f" and {more} more" if (more := len(silent) - NAMED) > 0 else "")
    who = f"rank {named} was" if len(silent) == 1 else f"ranks {named} were"
    return (
        f"{who} not heard of for {PATIENCE:g} s: frozen, or cut off from this one. "
        "Type the same command again: only what is missing is done"
    )
