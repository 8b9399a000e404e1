"""What this process may use of its machine, and that it does not outlive its parent."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time

DEATH_SIGNAL_OPTION = 1  # PR_SET_PDEATHSIG of prctl(2)
SECONDS_BETWEEN_LOOKS = 1.0


def pause_collection() -> None:
    """Let no garbage be collected while modules are imported.

    They make a million objects that stay, and each collection walks those that there are: a sixth of the time of all
    imports was that.
    """
    gc.disable()


def resume_collection() -> None:
    """Collect garbage again, of what is made from now on: what there is stays, and forks go on to share its memory."""
    gc.freeze()
    gc.enable()


def cores() -> int:
    """How many cores this process may run on; macOS binds no process to some of them, and keeps no such list."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def node_cores(ranks: int) -> int:
    """How many cores the job's `ranks` on this node may use, all of them together.

    Mostly every rank sees all of them. Where srun binds each task to cores of its own, a rank sees fewer than SLURM
    gave the node, and they are its share already.
    """
    own = cores()
    bound = own < int(os.environ.get("SLURM_CPUS_ON_NODE", 0))
    return own * ranks if bound else own


def end_with_parent() -> None:
    """End this process when the one that started it ends, however that happens: at once on Linux, elsewhere soon after.

    PyTorch's watch in its workers, and that of a process pool, wait for ever where a full pipe or a lost lock holds
    them. Linux counts the thread that started this process as its parent: it must live as long as this one is wanted.
    """
    known = multiprocessing.parent_process()
    parent = os.getppid() if known is None else known.pid
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DEATH_SIGNAL_OPTION, signal.SIGKILL)
        if os.getppid() != parent:  # it was gone before the kernel was asked
            os._exit(1)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int | None) -> None:
    while os.getppid() == parent:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os._exit(1)
