"""The figures of a run, from what its ranks counted: what the bottleneck is told by, and what the manifest keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lora_clip.monitor.meter import Machine
from lora_clip.monitor.progress import Counters, total


@dataclass(frozen=True)
class Figures:
    """A run in figures. Times in seconds; shares from 0 to 1, taken after the first batch.

    `waiting`, `forward` (on a GPU: the device's time) and `blocked` (held up by the writer) are shares of a rank's
    time, `writing` of its writing thread's, `reading` and `decoding` of its workers' (without workers: the rank's);
    `cpu` and `worker_cpu` of all cores, `machine_cpu` what everything on the machine took of them. `pixels` is the
    mean width x height of the images, `filled` the share of the batches that was images, `device_memory` the share of
    the GPU's memory in use, `threads` are those of a rank's forward. NaN: not known.
    """

    device: str
    dtype: str
    cores: int
    gpus: int
    local_ranks: int
    workers: int
    batch_size: int
    decode: str
    threads: int
    fast_bfloat16: bool
    startup: float
    waiting: float
    forward: float
    blocked: float
    writing: float
    reading: float
    decoding: float
    cpu: float
    worker_cpu: float
    machine_cpu: float
    pixels: float
    filled: float
    device_memory: float
    images_by_rank: tuple[int, ...]
    seconds_by_rank: tuple[float, ...]

    @property
    def images(self) -> int:
        """Images of all ranks."""
        return sum(self.images_by_rank)

    @property
    def seconds(self) -> float:
        """Seconds that the slowest rank took after its first batch."""
        return max(self.seconds_by_rank, default=0.0)


def gather(
    ranks: Sequence[Counters], machine: Machine, dtype: str, workers: int, batch_size: int, decode: str
) -> Figures:
    """The figures of a run; a rank without images has no share in them. `workers` and `batch_size` are per rank."""
    worked = [rank for rank in ranks if rank.images]
    steady, watched = sum(rank.steady for rank in worked), total(worked, "watched")
    seconds = total(worked, "seconds")
    cores_each = machine.cores / machine.local_ranks
    batches = max(1.0, total(worked, "batches"))
    return Figures(
        device=machine.device,
        dtype=dtype,
        cores=machine.cores,
        gpus=machine.gpus,
        local_ranks=machine.local_ranks,
        workers=workers,
        batch_size=batch_size,
        decode=decode,
        threads=machine.threads,
        fast_bfloat16=machine.fast_bfloat16,
        startup=max((rank.startup for rank in worked), default=0.0),
        waiting=_share(total(worked, "waiting"), steady),
        forward=_share(total(worked, "forward"), steady),
        blocked=_share(total(worked, "blocked"), steady),
        writing=_share(total(worked, "write"), steady),
        reading=_share(total(worked, "read"), seconds * max(1, workers)),
        decoding=_share(total(worked, "decode"), seconds * max(1, workers)),
        cpu=_share(total(worked, "cpu"), watched * cores_each),
        worker_cpu=_share(total(worked, "worker_cpu"), watched * cores_each),
        machine_cpu=_share(total(worked, "machine_cpu"), watched * machine.cores) if machine.whole else math.nan,
        pixels=total(worked, "pixels") / batches,
        filled=total(worked, "images") / batches / batch_size,
        device_memory=max((rank.device_used_bytes / rank.device_total_bytes for rank in worked), default=math.nan),
        images_by_rank=tuple(int(rank.images) for rank in ranks),
        seconds_by_rank=tuple(rank.steady for rank in ranks),
    )


def _share(part: float, whole: float) -> float:
    return min(1.0, part / whole) if whole > 0 else math.nan


def record(ranks: Sequence[Counters]) -> list[dict[str, Any]]:
    """Each rank's figures as JSON values: times in seconds, memory in bytes, `cpu` in cores; null: not known."""
    return [{"rank": at, **_of_rank(rank)} for at, rank in enumerate(ranks)]


def _of_rank(rank: Counters) -> dict[str, Any]:
    figures = {
        "images_per_second": rank.images / rank.seconds if rank.seconds else math.nan,
        "startup_seconds": rank.startup or math.nan,
        "seconds": rank.seconds,
        "waiting_share": _share(rank.waiting, rank.steady),
        "forward_share": _share(rank.forward, rank.steady),
        "cpu": (rank.cpu + rank.worker_cpu) / rank.watched if rank.watched else math.nan,
        "device_use": rank.device_use,
        "watts": rank.watts,
    }
    memory = {"peak_bytes": rank.peak_bytes or rank.host_bytes, "peak_device_bytes": rank.device_bytes}
    return {
        "images": int(rank.images),
        **{name: None if math.isnan(value) else round(value, 4) for name, value in figures.items()},
        **{name: int(value) for name, value in memory.items()},
    }
