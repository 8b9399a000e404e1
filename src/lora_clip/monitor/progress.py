"""What each rank has counted, in one small file of the output directory: without collectives, no rank waits."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

from lora_clip.output.share import FOLDER

UNKNOWN = float("nan")


@dataclass
class Counters:
    """A rank's figures; times in seconds, memory in bytes, NaN where nothing is known.

    `seconds` is the time since its prediction began, `first` the part of it until its first batch was through. After
    that, `waiting` (for data), `forward` and `blocked` (the writer took no more) share the rank's time; on a GPU they
    are the device's own: it computed, or idled for want of data or of a writer that kept up. `read` and `decode` are
    the workers' time, `write` is the writing thread's.
    `cpu`, `worker_cpu` and `machine_cpu` are core-seconds of the rank's process, of its workers and of everything that
    runs on the machine, during `watched` seconds.
    `read_bytes` is what its process and its workers have read so far, from files and connections.
    `peak_bytes` is the most PSS (or RSS) seen of the process and its workers, `host_bytes` the process's own peak.
    `bytes` adds up what was read of encoded images; `pixels` the width x height of one image a batch.
    `device_use` (a share) and `watts` are means, with `_now` they are of the moment.
    """

    images: float = 0
    bytes: float = 0
    rejects: float = 0
    batches: float = 0
    pixels: float = 0
    startup: float = 0
    seconds: float = 0
    first: float = 0
    waiting: float = 0
    forward: float = 0
    blocked: float = 0
    read: float = 0
    decode: float = 0
    write: float = 0
    watched: float = 0
    cpu: float = 0
    worker_cpu: float = 0
    machine_cpu: float = 0
    read_bytes: float = 0
    rss_bytes: float = UNKNOWN
    pss_bytes: float = UNKNOWN
    peak_bytes: float = 0
    host_bytes: float = 0
    device_bytes: float = 0
    device_used_bytes: float = UNKNOWN
    device_total_bytes: float = UNKNOWN
    device_now: float = UNKNOWN
    watts_now: float = UNKNOWN
    device_use: float = UNKNOWN
    watts: float = UNKNOWN
    ended: float = 0

    @property
    def steady(self) -> float:
        """Seconds after the first batch."""
        return max(0.0, self.seconds - self.first) if self.first else 0.0

    def share(self, part: float) -> float:
        """A part of the seconds after the first batch, from 0 to 1."""
        return min(1.0, part / self.steady) if self.steady else 0.0


ROW = struct.Struct(f"<{len(fields(Counters))}d")


class Progress:
    """The file of counters, one row a rank.

    Each of several jobs that share an output has one, in the folder that goes when all is finished: what was seen last
    is remembered.
    """

    def __init__(self, output_dir: Path, job: int | None = None) -> None:
        self.path = output_dir / ".progress" if job is None else output_dir / FOLDER / f"progress-{job:05d}"
        self._shared = job is not None
        self._seen: list[Counters] = []
        self._written: dict[int, Counters] = {}
        self._others: dict[Path, list[Counters]] = {}

    def write(self, rank: int, counters: Counters) -> None:
        """Replace a rank's row. Raises OSError."""
        self._written[rank] = counters
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.pwrite(descriptor, ROW.pack(*astuple(counters)), rank * ROW.size)
        finally:
            os.close(descriptor)

    def read(self, ranks: int = 0) -> list[Counters]:
        """The rows by rank; of `ranks` ranks, those that have told nothing yet have counted nothing."""
        self._seen = _rows(self.path) or self._seen
        known = dict(enumerate(self._seen)) | self._written
        return [known.get(rank, Counters()) for rank in range(max([ranks, *(rank + 1 for rank in known)]))]

    def read_all(self, ranks: int = 0) -> list[Counters]:
        """The same, and then the rows of other jobs that share the output, as they were last seen.

        All are marked as ended: a rank of theirs that is idle is told by them.
        """
        others = self.path.parent.glob("progress-*") if self._shared else ()
        for path in sorted({*others} - {self.path}):
            self._others[path] = [replace(row, ended=1) for row in _rows(path)] or self._others.get(path, [])
        return [*self.read(ranks), *(row for rows in self._others.values() for row in rows)]

    def clear(self) -> None:
        """Forget an earlier run's rows; those of jobs that share an output stay for the others to see."""
        if not self._shared:
            self.path.unlink(missing_ok=True)
            self._seen, self._written = [], {}


def _rows(path: Path) -> list[Counters]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    return [Counters(*values) for values in ROW.iter_unpack(data[: len(data) // ROW.size * ROW.size])]


def total(ranks: Sequence[Counters], name: str) -> float:
    """A figure added up over the ranks."""
    return float(sum(getattr(rank, name) for rank in ranks))
