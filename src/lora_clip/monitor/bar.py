"""The live line: one bar over the images of all ranks, and beside it what a person should see while it runs."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from lora_clip.monitor.progress import Counters, total

INTERVAL = 0.5
"""Seconds between two looks at the ranks."""
INTERVAL_WITHOUT_TERMINAL = 30.0
WINDOW = 5.0
"""Seconds over which the live figures are taken."""
RANKS_SHOWN = 8


class Bar:
    """A bar over `total` images, or over bytes where the images are not counted yet.

    Without a terminal it is a line now and then, so that a log stays readable.
    """

    def __init__(self, total: int, of_bytes: bool = False) -> None:
        self._live = sys.stderr.isatty()
        self._figure = "bytes" if of_bytes else "images"
        self._past: deque[tuple[float, list[Counters]]] = deque()
        self._bar: tqdm[Any] = tqdm(
            total=total,
            unit="B" if of_bytes else " images",
            unit_scale=of_bytes,
            mininterval=INTERVAL if self._live else INTERVAL_WITHOUT_TERMINAL,
            miniters=1,
            smoothing=0.1,
            dynamic_ncols=self._live,
            file=sys.stderr,
        )

    def show(self, ranks: list[Counters]) -> None:
        """Bring it to where the ranks are."""
        now = time.monotonic()
        self._past.append((now, ranks))
        while now - self._past[0][0] > WINDOW and len(self._past) > 2:
            self._past.popleft()
        beside = postfix(self._past[0][1], ranks, now - self._past[0][0])
        if self._figure == "bytes":
            beside = f"{int(total(ranks, 'images')):,} images, {beside}"
        self._bar.set_postfix_str(beside, refresh=False)
        done = int(total(ranks, self._figure)) - self._bar.n
        if done or not self._live:
            self._bar.update(done)
        else:
            self._bar.refresh()

    def close(self) -> None:
        """Leave the terminal in order."""
        self._bar.close()


def postfix(before: Sequence[Counters], now: Sequence[Counters], seconds: float) -> str:
    """What stands beside the bar, from the ranks' counters now and `seconds` ago."""
    past = [*before, *(Counters() for _ in now[len(before) :])]
    rejects = int(total(now, "rejects"))
    notes = [_waiting(past, now)]
    notes += [_use(now) or _rates(past, now, seconds), _idle(past, now, seconds)]
    notes += [f"{rejects} rejected"] if rejects else []
    return ", ".join(note for note in notes if note)


def _waiting(past: Sequence[Counters], now: Sequence[Counters]) -> str:
    """The share of the time, of the ranks that are past their first batch."""
    pairs = [(before, rank) for before, rank in zip(past, now, strict=True) if before.first]
    passed = sum(rank.seconds - before.seconds for before, rank in pairs)
    waited = sum(rank.waiting - before.waiting for before, rank in pairs)
    return f"waiting {100 * min(1.0, max(0.0, waited / passed)):.0f} %" if passed > 0 else ""


def _use(ranks: Sequence[Counters]) -> str:
    if all(math.isnan(rank.device_now) for rank in ranks):
        return ""
    return f"gpu {_each([100 * rank.device_now for rank in ranks])} %"


def _rates(past: Sequence[Counters], now: Sequence[Counters], seconds: float) -> str:
    if len(now) < 2 or seconds < INTERVAL:
        return ""
    rates = [(rank.images - before.images) / seconds for before, rank in zip(past, now, strict=True)]
    return f"by rank {_each(rates)}/s"


def _each(figures: Sequence[float]) -> str:
    """A figure a rank, or the range of many."""
    if len(figures) <= RANKS_SHOWN:
        return "|".join("?" if math.isnan(figure) else f"{figure:.0f}" for figure in figures)
    known = [figure for figure in figures if not math.isnan(figure)]
    return f"{min(known):.0f} to {max(known):.0f}"


def _idle(past: Sequence[Counters], now: Sequence[Counters], seconds: float) -> str:
    """The ranks of several that did nothing for the whole window and are not at their end."""
    if len(now) < 2 or seconds < WINDOW - INTERVAL:
        return ""
    idle = [at for at, rank in enumerate(now) if rank.images == past[at].images and not rank.ended]
    listed = ", ".join(map(str, idle[:RANKS_SHOWN])) + (", …" if len(idle) > RANKS_SHOWN else "")
    return f"idle: rank {listed}" if idle else ""
