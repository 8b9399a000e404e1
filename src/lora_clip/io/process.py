"""What this process may use of its machine."""

from __future__ import annotations

import os


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
