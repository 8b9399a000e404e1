"""The work ranges of a worker as batches of pixels, and the DataLoader that brings them to the model."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lora_clip.errors import DataError
from lora_clip.io.process import end_with_parent
from lora_clip.loading.plan import Plan
from lora_clip.loading.ring import Ring, SharedBatch
from lora_clip.pixels.decode import EXACT, ImageError, prepare
from lora_clip.sources.base import Shard, Source
from lora_clip.types import ImageRow, PixelBatch, PreprocessSpec, RawSample, Reject, WorkRange

PREFETCHED_BATCHES = 2
HELD_BATCHES = 2
"""How many batches the main process may hold: the one in the model, and the next."""
NICENESS = 10
"""Of workers beside a model on the CPU: its threads wait for one another, so one held up by decoding holds up all."""


class PixelDataset(IterableDataset[PixelBatch]):
    """The images of one rank as PixelBatches; each worker process reads the ranges that the plan gave it."""

    def __init__(
        self,
        source: Source,
        spec: PreprocessSpec,
        batch_size: int,
        shards: Mapping[int, Shard],
        shares: Sequence[Sequence[WorkRange]],
        ring: Ring | None = None,
        decoding: str = EXACT,
    ) -> None:
        self.source, self.spec, self.batch_size, self.decoding = source, spec, batch_size, decoding
        self.shards, self.shares, self.ring = shards, shares, ring

    def __iter__(self) -> Iterator[PixelBatch]:
        worker = get_worker_info()
        for work in self.shares[worker.id if worker else 0]:
            yield from self._batches(work)

    def _batches(self, work: WorkRange) -> Iterator[PixelBatch]:
        samples = self.source.read(self.shards[work.shard], work)
        for start in range(work.start, work.stop, self.batch_size):
            stop = min(start + self.batch_size, work.stop)
            yield self._batch(samples, stop - start, work, last=stop == work.stop)

    def _batch(self, samples: Iterator[RawSample], positions: int, work: WorkRange, last: bool) -> PixelBatch:
        """The next `positions` samples; images fill the batch from its start, rejected ones take no place."""
        batch = self._empty(work, last)
        started = time.perf_counter()
        read = 0.0
        for _ in range(positions):
            before = time.perf_counter()
            sample = _next(samples, self.shards[work.shard])
            read += time.perf_counter() - before
            self._add(sample, batch)
        batch.pixels_BCHW[len(batch.rows) :] = 0
        batch.seconds = {"read": read, "decode": time.perf_counter() - started - read}
        return batch

    def _empty(self, work: WorkRange, last: bool) -> PixelBatch:
        worker = get_worker_info()
        if self.ring is None or worker is None:
            shape = batch_shape(self.batch_size, self.spec)
            return PixelBatch(torch.empty(shape, dtype=torch.uint8), [], [], work, last)
        pixels_BCHW, slot = self.ring.take(worker.id)
        return SharedBatch(pixels_BCHW, [], [], work, last, slot=slot)

    def _add(self, sample: RawSample, batch: PixelBatch) -> None:
        if sample.damage is not None:
            batch.rejects.append(reject(sample, "read", sample.damage))
            return
        try:
            out_CHW = batch.pixels_BCHW[len(batch.rows)]
            height, width = prepare(sample.image, self.spec, out_CHW, self.decoding)
        except (ImageError, MemoryError) as error:
            batch.rejects.append(reject(sample, "decode", str(error) or type(error).__name__))
            return
        batch.rows.append(describe(sample, width, height))


def batch_shape(batch_size: int, spec: PreprocessSpec) -> tuple[int, int, int, int]:
    """(B, C, H, W) of a batch of pixels."""
    return batch_size, 3, *spec.crop


def _next(samples: Iterator[RawSample], shard: Shard) -> RawSample:
    """The next sample, which the plan says is there."""
    try:
        return next(samples)
    except StopIteration:
        raise DataError(
            f"{shard.path} changed while it was read: {shard.images} images were counted in it, fewer are there now"
        ) from None


def reject(sample: RawSample, stage: str, error: str) -> Reject:
    """The record of a sample that could not be embedded."""
    return Reject(sample.shard, sample.position, _printable(sample.key), stage, _printable(error))


def describe(sample: RawSample, width: int, height: int) -> ImageRow:
    """The record of an embedded image; the caption is its `.txt`, else the `caption` of its `.json`."""
    metadata = _text(sample.extras.get("json"))
    fields = _fields(metadata)
    caption = _text(sample.extras.get("txt")) or fields.get("caption")
    return ImageRow(
        _printable(sample.path),
        _printable(sample.key),
        sample.shard,
        sample.position,
        width,
        height,
        caption if isinstance(caption, str) else None,
        url if isinstance(url := fields.get("url"), str) else None,
        metadata,
    )


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.decode("utf-8-sig", "replace").strip()


def _fields(metadata: str | None) -> dict[str, object]:
    try:
        fields = json.loads(metadata) if metadata else {}
    except (ValueError, RecursionError):
        return {}
    return {
        key: _printable(value) if isinstance(value, str) else value
        for key, value in (fields.items() if isinstance(fields, dict) else ())
    }


def _printable(text: str) -> str:
    """The text with what UTF-8 cannot hold (undecodable file names, lone surrogates) replaced by question marks."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


class PixelDataModule(LightningDataModule):
    """Hands every rank its share of the plan; rank 0 brings the plan, the others receive it in `setup`.

    `batch_size` is per device, `num_workers` per rank; `decoding` is `exact` or `fast`.
    """

    def __init__(
        self, source: Source, spec: PreprocessSpec, batch_size: int, num_workers: int, decoding: str = EXACT
    ) -> None:
        super().__init__()
        self.source, self.spec, self.decoding = source, spec, decoding
        self.batch_size, self.num_workers = batch_size, num_workers
        self.plan: Plan | None = None

    def setup(self, stage: str) -> None:
        """Receive the plan: one truth, read once from the file system, for all ranks."""
        assert self.trainer is not None
        self.plan = self.trainer.strategy.broadcast(self.plan)

    def predict_dataloader(self) -> DataLoader[PixelBatch]:
        """The batches of this rank, as soon as any worker has one."""
        assert self.trainer is not None and self.plan is not None
        shares = self.plan.shares[self.trainer.global_rank]
        workers = self.num_workers if any(shares) else 0
        ring = self._ring(workers) if workers else None
        dataset = PixelDataset(self.source, self.spec, self.batch_size, self.plan.shards, shares, ring, self.decoding)
        return DataLoader(
            dataset,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=PREFETCHED_BATCHES if workers else None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=partial(_settle_worker, self._niceness()) if workers else None,
            in_order=False,
            multiprocessing_context="fork" if workers else None,
        )

    def _niceness(self) -> int:
        assert self.trainer is not None
        return NICENESS if self.trainer.strategy.root_device.type == "cpu" else 0

    def _ring(self, workers: int) -> Ring | None:
        """Shared buffers, where the device reads them before `release`: a CPU does, and page-locked copies do."""
        assert self.trainer is not None
        if self.trainer.strategy.root_device.type not in ("cpu", "cuda"):
            return None
        return Ring(workers, PREFETCHED_BATCHES + HELD_BATCHES, batch_shape(self.batch_size, self.spec))


def _settle_worker(niceness: int, _: int) -> None:
    """Ctrl-C reaches every process of the terminal; the rank's main process decides what it means, and when to end."""
    os.nice(niceness)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = lambda *_: None  # errors go to the main process; only its sudden end would be complained of here
    end_with_parent()
