"""Everything that is measured of one rank, and of the machine under it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from typing import Protocol

import lightning.pytorch as pl
import torch

from lora_clip.io.process import node_cores
from lora_clip.monitor.clock import STARTED
from lora_clip.monitor.devices import open_gauge
from lora_clip.monitor.processes import Processes, Usage, peak_rss_bytes
from lora_clip.monitor.progress import Counters
from lora_clip.monitor.stopwatch import stopwatch_for
from lora_clip.types import PixelBatch


class Writer(Protocol):
    """What is asked of the callback that writes: the seconds that its thread has worked."""

    busy_seconds: float


@dataclass(frozen=True)
class Machine:
    """What the ranks of one node share: its cores and visible GPUs; `threads` are those of each rank's forward.

    `whole` says whether those are all cores of the machine, so that what else runs can be told from the sum.
    """

    device: str
    cores: int
    gpus: int
    local_ranks: int
    threads: int
    fast_bfloat16: bool
    whole: bool = True

    @classmethod
    def under(cls, trainer: pl.Trainer) -> Machine:
        """The machine as this rank sees it."""
        cores = node_cores(trainer.num_devices)
        able: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return cls(
            device=trainer.strategy.root_device.type,
            cores=cores,
            gpus=torch.cuda.device_count(),
            local_ranks=trainer.num_devices,
            threads=torch.get_num_threads(),
            fast_bfloat16=bool(able.get("avx512_bf16") or able.get("amx_bf16")),
            whole=cores == os.cpu_count(),
        )


class Meter:
    """Counts the batches of a rank; `read` adds what clocks, processes and the device say."""

    def __init__(self, device: torch.device, writer: Writer, processes: Processes) -> None:
        self.stopwatch = stopwatch_for(device)
        self._device, self._writer, self._processes = device, writer, processes
        self._gauge = open_gauge(device)
        self._counters = Counters()
        self._read_before = processes.read().read_bytes  # the model's files
        self._watched_since: tuple[float, Usage] | None = None
        self._readings, self._use, self._watts = 0, 0.0, 0.0

    def count(self, batch: PixelBatch) -> None:
        """Take note of a batch; this is all that the loop itself is charged with."""
        counters = self._counters
        counters.images += len(batch.rows) + len(batch.rejects)
        counters.bytes += batch.bytes
        counters.rejects += len(batch.rejects)
        counters.batches += 1
        counters.pixels += batch.rows[0].width * batch.rows[0].height if batch.rows else 0
        read = batch.seconds.get("read", 0.0)
        counters.read += read
        counters.decode += sum(batch.seconds.values()) - read
        if not counters.startup:
            counters.startup = time.perf_counter() - STARTED

    def read(self, ended: bool = False) -> Counters:
        """The figures now, as a copy; for one thread only. Some stay as they were once the rank has `ended`."""
        counters = self._counters
        counters.waiting, counters.forward, counters.blocked = self.stopwatch.read()
        counters.first, counters.seconds = self.stopwatch.first, self.stopwatch.elapsed()
        counters.write = self._writer.busy_seconds
        counters.ended = float(ended)
        self._read_processes()
        self._read_device()
        return replace(counters)

    def _read_processes(self) -> None:
        counters, usage = self._counters, self._processes.read()
        counters.rss_bytes, counters.pss_bytes = usage.rss_bytes, usage.pss_bytes
        counters.read_bytes = usage.read_bytes - self._read_before
        counters.peak_bytes = max(counters.peak_bytes, usage.memory_bytes)
        counters.host_bytes = peak_rss_bytes()
        if self._watched_since is None:
            self._watched_since = (counters.seconds, usage) if counters.first else None
            return
        since, before = self._watched_since
        counters.watched = counters.seconds - since
        counters.cpu, counters.worker_cpu = usage.cpu - before.cpu, usage.worker_cpu - before.worker_cpu
        counters.machine_cpu = usage.machine_cpu - before.machine_cpu

    def _read_device(self) -> None:
        counters = self._counters
        if self._device.type == "cuda":
            counters.device_bytes = torch.cuda.max_memory_allocated(self._device)
        if self._gauge is None:
            return
        use, counters.device_used_bytes, counters.device_total_bytes, watts = self._gauge.read()
        counters.device_now, counters.watts_now = use, watts
        if counters.first and not counters.ended:
            self._readings += 1
            self._use, self._watts = self._use + use, self._watts + watts
            counters.device_use, counters.watts = self._use / self._readings, self._watts / self._readings
