"""Requests that are tried again: a connection that drops, stalls or is refused for now costs time and nothing else."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable
from typing import TypeVar

from lora_clip.errors import LoraClipError
from lora_clip.io.addresses import redacted_text

Result = TypeVar("Result")
TRIES, FEW_TRIES = 9, 4
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 20.0
"""Seconds; each pause is twice the one before, and all nine tries take most of a minute."""
LONGEST_WISH = 600.0
"""Seconds that a server may ask us to stay away for."""
PROGRESS = 64 << 10
"""Bytes after which a connection that broke again counts as a first failure."""
DOUBTFUL = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError", "gaierror"}
"""What is a mistake more often than a moment's trouble: no credentials, no such host. Told after few tries."""
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError)
OURS = (TypeError, AttributeError, LookupError, NameError, AssertionError, ImportError)


class TransientError(OSError):
    """What another try may mend; `after` is in how many seconds the server would like it."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(errno.EAGAIN, message)
        self.after = after


class ChangedError(OSError):
    """The object is not what it was when it was listed."""

    def __init__(self, found: str) -> None:
        super().__init__(errno.ESTALE, f"it is not what it was when it was listed: {found}")


def persist(attempt: Callable[[], Result], reached: Callable[[], int] = lambda: 0) -> Result:
    """The result of `attempt`, tried until it succeeds; `reached` counts the bytes that arrived so far.

    Raises OSError at once for what stays as it is (not there, not allowed, changed), else after the last try.
    """
    failures, before = 0, reached()
    while True:
        try:
            return attempt()
        except (ChangedError, LoraClipError, *LASTING, *OURS):
            raise
        except Exception as error:
            now = reached()
            failures, before = (failures + 1 if now - before < PROGRESS else 1), now
            if failures >= _most_tries(error):
                raise OSError(errno.EIO, f"given up after {failures} tries: {words(error)}") from error
            time.sleep(pause(failures, getattr(error, "after", None)))


def _most_tries(error: BaseException) -> int:
    kinds = {type(one).__name__ for one in (error, error.__cause__) if one is not None}
    return FEW_TRIES if kinds & DOUBTFUL else TRIES


def pause(failures: int, wish: float | None = None) -> float:
    """Seconds before the next try: doubled each time, and random, so that many workers do not come back at once."""
    if wish is not None:
        return min(wish, LONGEST_WISH) * random.uniform(1, 1.1)
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (failures - 1)) * random.uniform(0.5, 1)


def words(error: BaseException) -> str:
    """What an error says, in one line and without anybody's secrets."""
    said = " ".join(str((isinstance(error, OSError) and error.strerror) or error).split())
    if isinstance(error, FileNotFoundError) and " " not in said:  # the name alone
        said = "no such file"
    return redacted_text(said or type(error).__name__)
