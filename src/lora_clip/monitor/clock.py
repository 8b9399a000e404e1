"""When this program began: imported first, so that start-up is counted from there."""

import time

STARTED = time.perf_counter()
"""Its process may be older, and have been the shell that installed it."""


def began() -> float:
    """When this program began, in seconds since 1970: what a run took includes its imports."""
    return time.time() - (time.perf_counter() - STARTED)
