"""One job at a time in a folder."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from lora_clip.errors import OutputError
from lora_clip.io.atomic import storage_error

NAME = ".lock"
SECONDS_BETWEEN_TRIES = 0.1
SECONDS_TO_DIE = 60.0
"""How long processes of a group that torchrun ends may take; the group that it starts in their place waits for them."""


def seconds_to_wait() -> float:
    """How long another holder of a lock may be a dying process of this very job: torchrun starts its ranks again."""
    return SECONDS_TO_DIE if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) else 0.0


class FolderLock:
    """A lock that all processes of a job share and that no second job can take while one of them lives.

    POSIX record locks on the file `.lock` of the folder: released when the process dies, however it dies, not inherited
    by processes that it starts, and the process's as a whole: releasing one of two lets go of both.

    Raises StorageError where the file cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / NAME
        self._descriptor = self._open()

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise storage_error(self.path, error) from error

    def claim(self, insist: bool = True, patience: float = 0.0) -> None:
        """Make sure that no process of another job is alive. Raises OutputError if one is, after some seconds.

        A file system without locks is an OutputError too, unless the caller does not `insist`.
        """
        until = time.monotonic() + patience
        while not (had := self.try_claim(insist)) and time.monotonic() < until:
            time.sleep(SECONDS_BETWEEN_TRIES)
        if not had:
            raise OutputError(
                f"another job is writing to {self.folder}: wait for it or stop it, or name another folder for this one"
            )

    def try_claim(self, insist: bool = True) -> bool:
        """The same, without an error where a process of another job is alive: whether none is."""
        while True:
            if not self._try(fcntl.LOCK_EX, insist):
                return False
            if self._is_current():
                return True
            self._reopen()

    def try_share(self) -> bool:
        """Hold the lock together with others, if nobody has claimed it; whether that is so."""
        return self._try(fcntl.LOCK_SH, insist=True)

    def let_go(self) -> None:
        """Hold it no longer, but keep it at hand."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def _try(self, kind: int, insist: bool) -> bool:
        try:
            fcntl.lockf(self._descriptor, kind | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            if insist:
                raise OutputError(
                    f"{self.folder} is on a file system without locks ({error.strerror}): use another one"
                ) from error
        return True

    def share(self) -> None:
        """Hold the lock together with the job's other processes, until this one ends."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_SH)

    def release(self, remove: bool = False) -> None:
        """Let go, so that the folder can be removed or used by another job of this process.

        With `remove` the file goes too: for a holder whose job is done and that has claimed the lock, not shared it.
        """
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def _is_current(self) -> bool:
        """Whether the file is still the folder's, and not one that its last holder has removed."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def _reopen(self) -> None:
        os.close(self._descriptor)
        self._descriptor = self._open()
