"""Code of a test in another process: what one job may do while another one lives."""

from __future__ import annotations

import os
from collections.abc import Callable

from lora_clip.errors import OutputError


def in_child(action: Callable[[], object]) -> int:
    """The exit status of an action in another process: 0, or 7 for an OutputError."""
    if not (pid := os.fork()):
        try:
            action()
        except OutputError:
            os._exit(7)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
