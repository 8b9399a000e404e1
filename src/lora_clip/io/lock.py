"""One job at a time in an output directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from lora_clip.errors import OutputError


class OutputLock:
    """A lock that every rank of a job shares and that no second job can take while one of them lives.

    POSIX record locks: released when the process dies, however it dies, and not inherited by DataLoader workers.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._descriptor = os.open(root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)

    def claim(self) -> None:
        """Make sure that no other job's rank is alive, then share. Raises OutputError if one is."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise OutputError(
                f"another job is writing to {self.root}: wait for it or stop it, or give this one its own output_dir"
            ) from error
        except OSError as error:
            raise OutputError(
                f"{self.root} is on a file system without locks ({error.strerror}): use another one"
            ) from error

    def share(self) -> None:
        """Hold the lock together with the other ranks, until this process ends."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_SH)

    def release(self) -> None:
        """Let go, so that the directory can be removed or used by another job of this process."""
        os.close(self._descriptor)
