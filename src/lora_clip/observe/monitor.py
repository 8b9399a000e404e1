"""What every rank does, in one view: a progress bar over all images, and the figures of the summary.

Each rank writes its counters into its row of a small file in the output directory; rank 0 reads all rows. No collective
is needed, so no rank waits for another.
"""

from __future__ import annotations

import os
import resource
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from lora_clip.batch import EmbeddedBatch, PixelBatch
from lora_clip.model.adapter import AdapterSummary

ROW = struct.Struct("<6d")
INTERVAL = 0.5
"""Seconds between two updates of a rank's row."""
INTERVAL_WITHOUT_TERMINAL = 30.0


@dataclass
class Counters:
    """A rank's figures: images done, rejects, seconds of prediction, of waiting for data, peak bytes (host, device)."""

    images: float = 0
    rejects: float = 0
    seconds: float = 0
    waiting: float = 0
    host_bytes: float = 0
    device_bytes: float = 0


assert len(fields(Counters)) * 8 == ROW.size


class Progress:
    """The file of counters, one row a rank."""

    def __init__(self, output_dir: Path) -> None:
        self.path = output_dir / ".progress"

    def write(self, rank: int, counters: Counters) -> None:
        """Replace a rank's row."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.pwrite(descriptor, ROW.pack(*astuple(counters)), rank * ROW.size)
        finally:
            os.close(descriptor)

    def read(self) -> list[Counters]:
        """All rows that were written so far, by rank."""
        data = self.path.read_bytes() if self.path.exists() else b""
        return [Counters(*values) for values in ROW.iter_unpack(data[: len(data) // ROW.size * ROW.size])]

    def clear(self) -> None:
        """Forget an earlier run's rows."""
        self.path.unlink(missing_ok=True)


class Monitor(Callback):
    """Counts what its rank does; on rank 0, shows the progress of all."""

    def __init__(self, output_dir: Path) -> None:
        self.progress = Progress(output_dir)
        self.counters = Counters()
        self.opening: Callable[[AdapterSummary | None], str] | None = None
        self._started = self._idle_since = self._written = 0.0
        self._bar: tqdm[Any] | None = None

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what will be done, start the clock and the bar."""
        self._started = self._idle_since = time.perf_counter()
        if trainer.is_global_zero:
            if self.opening is not None:
                print(self.opening(pl_module.adapter_summary), flush=True)  # type: ignore[arg-type]
            self._bar = progress_bar(trainer.datamodule.plan.images)  # type: ignore[attr-defined]

    def on_predict_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """The batch is here: what has passed since the last one was waiting."""
        self.counters.waiting += time.perf_counter() - self._idle_since

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: EmbeddedBatch, batch: PixelBatch, *_: Any
    ) -> None:
        """Count the batch; now and then, tell the others."""
        self.counters.images += len(batch.rows) + len(batch.rejects)
        self.counters.rejects += len(batch.rejects)
        self._idle_since = time.perf_counter()
        if self._idle_since - self._written >= INTERVAL:
            self._tell(trainer)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell the final figures."""
        self._tell(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the bar where it is."""
        self.close()

    def _tell(self, trainer: pl.Trainer) -> None:
        self._written = time.perf_counter()
        self.counters.seconds = self._written - self._started
        self.counters.host_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if trainer.strategy.root_device.type == "cuda":
            self.counters.device_bytes = torch.cuda.max_memory_allocated(trainer.strategy.root_device)
        self.progress.write(trainer.global_rank, self.counters)
        if self._bar is not None:
            self._show(self.progress.read())

    def _show(self, ranks: list[Counters]) -> None:
        assert self._bar is not None
        rejects = int(sum(rank.rejects for rank in ranks))
        if rejects:
            self._bar.set_postfix_str(f"{rejects} rejected", refresh=False)
        self._bar.update(int(sum(rank.images for rank in ranks)) - self._bar.n)

    def finish(self) -> list[Counters]:
        """The final figures of all ranks; for rank 0, after all have ended."""
        ranks = self.progress.read()
        if self._bar is not None:
            self._show(ranks)
        self.close()
        self.progress.clear()
        return ranks

    def close(self) -> None:
        """Leave the terminal in order."""
        if self._bar is not None:
            self._bar.close()


def progress_bar(total: int) -> tqdm[Any]:
    """A bar over all images; without a terminal a line now and then, so that a log stays readable."""
    live = sys.stderr.isatty()
    return tqdm(
        total=total,
        unit=" images",
        mininterval=INTERVAL if live else INTERVAL_WITHOUT_TERMINAL,
        miniters=1,
        smoothing=0.1,
        dynamic_ncols=live,
        file=sys.stderr,
    )
