"""What a rank's process and its data workers take of the machine."""

from __future__ import annotations

import math
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from lora_clip.monitor.progress import UNKNOWN

CHEAP_MEMORY = 0.002
"""Share of a thread's time that adding up memory may take: the kernel walks all pages for it."""


class Usage(NamedTuple):
    """Core-seconds so far of the process, of its workers and of the whole machine; memory of process and workers.

    In bytes; PSS counts shared pages once. `read_bytes` is what process and workers have read so far, from files and
    connections alike. NaN where the kernel does not tell it.
    """

    cpu: float
    worker_cpu: float
    machine_cpu: float
    rss_bytes: float
    pss_bytes: float
    read_bytes: float = UNKNOWN

    @property
    def memory_bytes(self) -> float:
        """PSS, or RSS where that is all there is."""
        return self.rss_bytes if math.isnan(self.pss_bytes) else self.pss_bytes


class Processes:
    """Looks at this process and the children that it gets from now on: those it has are other ranks, not its workers.

    PSS is taken rarely enough to stay cheap, and kept in between.
    """

    def __init__(self) -> None:
        self._own = psutil.Process()
        self._others = set(self._children())
        self._workers: dict[int, psutil.Process] = {}
        self._worker_cpu: dict[int, float] = {}
        self._read: dict[int, float] = {}
        self._pss, self._pss_due = UNKNOWN, 0.0

    def read(self) -> Usage:
        """The usage now; a worker that has ended keeps the time it took."""
        self._find_workers()
        own = self._own.cpu_times()
        rss = float(self._own.memory_info().rss)
        for pid, worker in list(self._workers.items()):
            try:
                times = worker.cpu_times()
                self._worker_cpu[pid] = times.user + times.system
                self._read[pid] = _read_bytes(worker)
                rss += worker.memory_info().rss
            except psutil.Error:
                del self._workers[pid]
        workers, machine = sum(self._worker_cpu.values()), psutil.cpu_times()
        busy = sum(machine) - machine.idle - getattr(machine, "iowait", 0.0) - getattr(machine, "guest", 0.0)
        self._read[self._own.pid] = _read_bytes(self._own)
        return Usage(own.user + own.system, workers, busy, rss, self._pss_now(), sum(self._read.values()))

    def _find_workers(self) -> None:
        for pid in self._children():
            if pid not in self._workers and pid not in self._others:
                with suppress(psutil.Error):
                    self._workers[pid] = psutil.Process(pid)

    def _children(self) -> list[int]:
        """From the kernel's own list where it keeps one: psutil would look at every process of the machine."""
        pid = self._own.pid
        try:
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except OSError:
            return [child.pid for child in self._own.children()]

    def _pss_now(self) -> float:
        started = time.perf_counter()
        if started >= self._pss_due:
            self._pss = _pss([self._own.pid, *self._workers])
            ended = time.perf_counter()
            self._pss_due = ended + max(2.0, (ended - started) / CHEAP_MEMORY)
        return self._pss


def _read_bytes(process: psutil.Process) -> float:
    """Bytes that a process has asked the kernel for; Linux counts them."""
    try:
        return float(process.io_counters().read_chars)
    except (AttributeError, psutil.AccessDenied):
        return UNKNOWN


def _pss(pids: list[int]) -> float:
    found = 0.0
    for pid in pids:
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            found += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return found or UNKNOWN


def peak_rss_bytes() -> float:
    """The most memory that this process has had, as the kernel keeps it."""
    unit = 1 if sys.platform == "darwin" else 1024  # the one field of getrusage that systems do not agree on
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
