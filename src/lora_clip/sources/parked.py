"""What is open between two work ranges: the next range of a shard goes on where the one before it ended."""

from __future__ import annotations

from typing import Any


class Parked:
    """One thing for each process, under a key; who takes it has it alone, so that threads do not share it."""

    def __init__(self) -> None:
        self._held: list[tuple[Any, Any]] = []

    def take(self, key: Any) -> Any | None:
        """What was parked under this very key, or None."""
        try:
            held, value = self._held.pop()
        except IndexError:
            return None
        if held == key:
            return value
        value.close()
        return None

    def park(self, key: Any, value: Any) -> None:
        """Keep something that has `close` until it is wanted, or something else is."""
        before, self._held = self._held, [(key, value)]
        for _, other in before:
            other.close()
