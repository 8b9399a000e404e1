"""When this program began: imported first, so that start-up is counted from there."""

import time

STARTED = time.perf_counter()
"""Its process may be older, and have been the shell that installed it."""
