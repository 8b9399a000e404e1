"""What every rank does, counted while it runs, and all ranks in one view.

The loop itself only reads clocks and adds. A thread of each rank looks at the counts twice a second, asks the machine,
and writes the rank's row of the shared file and its timeline; rank 0's thread shows what all rows say.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from lora_clip.monitor import timeline
from lora_clip.monitor.bar import INTERVAL, Bar
from lora_clip.monitor.logs import LoggedFigures
from lora_clip.monitor.meter import Machine, Meter
from lora_clip.monitor.processes import Processes
from lora_clip.monitor.progress import Counters, Progress
from lora_clip.monitor.timeline import Timeline
from lora_clip.types import PixelBatch


class Monitor(Callback):
    """Counts what its rank does; on rank 0, shows the progress of all."""

    def __init__(self, output_dirs: Sequence[Path]) -> None:
        self.roots = output_dirs
        self.progress = Progress(output_dirs[0])
        self.machine: Machine | None = None
        self.opening: Callable[[], str] | None = None
        self.open_logger: Callable[[], Logger | None] = lambda: None
        self._writer: Any = None
        self._processes: Processes | None = None
        self._meter: Meter | None = None
        self._watch: Watch | None = None
        self._bar: Bar | None = None
        self._logged: LoggedFigures | None = None
        self._ranks = 0

    def around(self, writer: Callback) -> list[Callback]:
        """The callbacks of a run: on both sides of the writer, so that being held up by it is told from waiting."""
        self._writer = writer
        return [self, writer, _Behind(self)]

    def clear(self, outputs: Iterable[int]) -> None:
        """Forget an earlier run's counters, and the timelines of outputs that get new ones; before any rank begins."""
        self.progress.clear()
        for output in outputs:
            timeline.clear(self.roots[output])

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Look at the processes before the workers are started."""
        self._processes = Processes()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what will be done, start the clock, the bar and the watch."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.machine = Machine.under(trainer)
        self._ranks = trainer.world_size
        if (share := data.plan.share) is not None:
            self.progress = Progress(self.roots[0], share.job)
        if trainer.is_global_zero:
            if self.opening is not None:
                print(self.opening(), flush=True)
            plan = data.plan
            self._bar = Bar(plan.images) if plan.counted or plan.announced else Bar(plan.bytes, of_bytes=True)
            self._open_log(trainer)
        assert self._processes is not None
        self._meter = Meter(trainer.strategy.root_device, self._writer, self._processes)
        rank, roots = trainer.global_rank, [self.roots[output] for output in sorted(data.plan.needed)]
        number = rank if share is None else share.rank(rank).me
        lines = [Timeline(root, number, data.num_workers) for root in roots]
        self._watch = Watch(rank, trainer.world_size, self._meter, self.progress, lines, self._bar)
        self._watch.start()

    def _open_log(self, trainer: pl.Trainer) -> None:
        """Begin to tell the logger, where there is one; rank 0 tells it of all."""
        if (logger := self.open_logger()) is not None:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            setting = {"ranks": trainer.world_size, "workers": data.num_workers, "batch_size": data.batch_size}
            setting |= {"images": data.plan.images, "output_dir": str(self.roots[0])}
            self._logged = LoggedFigures(logger, self.progress, trainer.world_size, setting)
            self._logged.start()

    def on_predict_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """The batch is here."""
        assert self._meter is not None
        self._meter.stopwatch.batch_came()

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: PixelBatch, *_: Any
    ) -> None:
        """The model is through with it; the writer comes next."""
        assert self._meter is not None
        self._meter.stopwatch.batch_left()
        self._meter.count(batch)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """All batches are through; the writer finishes next."""
        assert self._meter is not None
        self._meter.stopwatch.last_batch_left()

    def batch_taken(self) -> None:
        """The writer has the batch."""
        assert self._meter is not None
        self._meter.stopwatch.batch_taken()

    def end(self) -> None:
        """Everything is written: tell the final figures."""
        assert self._meter is not None and self._watch is not None
        self._meter.stopwatch.finish()
        self._watch.end()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the bar where it is."""
        if self._watch is not None:
            self._watch.stop()
        self.close()
        if self._logged is not None:
            self._logged.stop()

    def log_end(self, ranks: Sequence[Counters], record: Mapping[str, Any]) -> None:
        """Tell the logger how the run ended, where there is one."""
        if self._logged is not None:
            self._logged.end(ranks, record)

    def finish(self) -> list[Counters]:
        """The final figures of all ranks; for rank 0, after all have ended.

        Zeros of one whose figures went with a shared output's folder before they were seen.
        """
        ranks = self.progress.read(self._ranks)
        if self._bar is not None:
            self._bar.show(self.progress.read_all(self._ranks))
        self.close()
        self.progress.clear()
        return ranks

    def close(self) -> None:
        """Leave the terminal in order."""
        if self._bar is not None:
            self._bar.close()


class _Behind(Callback):
    """Tells a monitor when the writer has had its turn."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def on_predict_batch_end(self, *_: Any) -> None:
        self._monitor.batch_taken()

    def on_predict_end(self, *_: Any) -> None:
        self._monitor.end()


class Watch(threading.Thread):
    """Reads a rank's meter now and then, and tells the file of all ranks, the rank's timelines, and the bar."""

    def __init__(
        self, rank: int, ranks: int, meter: Meter, progress: Progress, lines: Sequence[Timeline], bar: Bar | None
    ) -> None:
        super().__init__(name="watch", daemon=True)
        self._rank, self._ranks = rank, ranks
        self._meter, self._progress, self._lines, self._bar = meter, progress, lines, bar
        self._stopped = threading.Event()

    def run(self) -> None:
        """Look until it is stopped."""
        while not self._stopped.wait(INTERVAL):
            self._look()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()
        if self.is_alive():
            self.join()

    def end(self) -> None:
        """Look for the last time."""
        self.stop()
        self._look(ended=True)

    def _look(self, ended: bool = False) -> None:
        counters = self._meter.read(ended)
        with suppress(OSError):  # a full disk is the writer's to tell
            self._progress.write(self._rank, counters)
            for line in self._lines:
                if ended or line.due(counters):
                    line.write(counters)
            if self._bar is not None:
                self._bar.show(self._progress.read_all(self._ranks))
