"""The BasePredictionWriter: gathers a range's embeddings as batches come, and commits them, off the device's way."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter

from lora_clip.errors import TooManyRejectsError
from lora_clip.io.lock import FolderLock
from lora_clip.output.bucketed import store_of
from lora_clip.output.ledger import CommittedRange, by_shard, covers, prefix
from lora_clip.output.sharing import DoneByAnotherError, SharedStore, finish_shard
from lora_clip.output.store import Store
from lora_clip.output.tables import is_unit, norms
from lora_clip.types import UNCOUNTED, EmbeddedBatch, ImageRow, Reject, WorkRange

WAITING_BATCHES = 8
REJECTS_SHOWN = 3


@dataclass
class _OpenRange:
    """A work range some of whose batches have come."""

    started: float = field(default_factory=time.perf_counter)
    embeddings: list[np.ndarray] = field(default_factory=list)
    texts: list[np.ndarray] = field(default_factory=list)
    rows: list[ImageRow] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)


class RangeCommitter:
    """Turns the batches of a rank into committed ranges, and into finished shards where the rank has all of one.

    `targets` counts the wanted positions of each shard, as far as they were counted. Of the run's
    `images`, or of those seen where that was an estimate that proves too low, `max_reject_fraction` may be rejected.
    """

    def __init__(
        self, store: Store, rank: int, targets: Mapping[int, int], images: int, max_reject_fraction: float
    ) -> None:
        self.store, self.rank, self.targets = store, rank, targets
        self._counted: dict[int, int] = {}
        self.images, self.max_reject_fraction = images, max_reject_fraction
        self.seen = self.rejected = 0
        self._latest: deque[Reject] = deque(maxlen=REJECTS_SHOWN)
        self._open: dict[WorkRange, _OpenRange] = {}
        self.before = store.snapshot()
        self._ranges = {shard: list(found) for shard, found in self.before.committed.items() if shard in targets}

    def add(self, batch: EmbeddedBatch) -> None:
        """Take a batch whose embeddings are on the CPU; its range's last batch commits the range."""
        work = self._open.setdefault(batch.work, _OpenRange())
        embeddings_ND, texts_ND, rows, failed = _sound_rows(batch)
        work.embeddings.append(embeddings_ND)
        work.texts += [] if texts_ND is None else [texts_ND]
        work.rows += rows
        work.rejects += [*batch.rejects, *failed]
        self.seen += len(batch.rows) + len(batch.rejects)
        self._count([*batch.rejects, *failed])
        if batch.counted is not None:
            self._know(batch.counted)
        if batch.last:
            self._commit(batch.work, self._open.pop(batch.work))

    def _know(self, shard: Mapping[str, Any]) -> None:
        """Note, before anything of it is committed, what counting a shard told."""
        if self._target(shard["id"]) == UNCOUNTED:
            self.store.note_counted(self.rank, shard)
            self._counted[shard["id"]] = shard["images"]

    def _target(self, shard: int) -> int:
        return self._counted.get(shard, self.targets[shard])

    def _count(self, rejects: Sequence[Reject]) -> None:
        self.rejected += len(rejects)
        self._latest.extend(rejects)
        if self.rejected > (allowed := self.max_reject_fraction * max(self.images, self.seen)):
            latest = (f"\n  {one.key} (shard {one.shard}): {one.stage}: {one.error[:200]}" for one in self._latest)
            raise TooManyRejectsError(
                f"{self.rejected:,} images rejected, more than max_reject_fraction allows for this run "
                f"({int(allowed):,}), such as{''.join(latest)}\n"
                "max_reject_fraction=1 lets the run go on whatever comes"
            )

    def _commit(self, work: WorkRange, gathered: _OpenRange) -> None:
        whole = self._is_whole(work)
        seconds = time.perf_counter() - gathered.started
        rejects = sorted(gathered.rejects, key=lambda reject: reject.position)
        embeddings_ND = np.concatenate(gathered.embeddings)
        texts_ND = np.concatenate(gathered.texts) if gathered.texts else None
        entry = self.store.write(self.rank, work, whole, embeddings_ND, gathered.rows, rejects, seconds, texts_ND)
        if not whole:
            self._finish(work.shard, entry)

    def _is_whole(self, work: WorkRange) -> bool:
        """Whether a range is all of its shard, and goes into the final folders at once."""
        return work.start == 0 and work.stop == self._target(work.shard)

    def _finish(self, shard: int, entry: CommittedRange) -> None:
        """Assemble the shard if this rank has the last of it; what several ranks have shared is left to rank 0."""
        ranges = by_shard([*self._ranges.get(shard, []), entry])[shard]
        self._ranges[shard] = ranges
        if covers(ranges, self._target(shard)):
            self.store.assemble(self.rank, shard, prefix(self._ranges.pop(shard)), self.before)


class CellCommitter(RangeCommitter):
    """The same beside other jobs that write to the output: the shards are put together from all that they commit."""

    store: SharedStore

    def _is_whole(self, work: WorkRange) -> bool:
        return False

    def _commit(self, work: WorkRange, gathered: _OpenRange) -> None:
        with suppress(DoneByAnotherError):
            super()._commit(work, gathered)

    def _finish(self, shard: int, entry: CommittedRange) -> None:
        finish_shard(self.store, self.before, shard, self._target(shard))


def _sound_rows(
    batch: EmbeddedBatch,
) -> tuple[np.ndarray, np.ndarray | None, Sequence[ImageRow], list[Reject]]:
    """The batch's rows without padding; one whose embedding is not finite or not of unit norm becomes a reject."""
    embeddings_ND = batch.embeddings_BD[: len(batch.rows)].numpy()
    texts_ND = None if batch.texts_BD is None else batch.texts_BD[: len(batch.rows)].numpy()
    sound_N, norms_N = _are_sound(embeddings_ND, texts_ND)
    if sound_N.all():
        return embeddings_ND, texts_ND, batch.rows, []
    failed = [
        Reject(row.shard, row.position, row.key, "encode", f"the embedding's norm is {norm}")
        for row, norm, sound in zip(batch.rows, norms_N, sound_N, strict=True)
        if not sound
    ]
    rows = [row for row, sound in zip(batch.rows, sound_N, strict=True) if sound]
    return embeddings_ND[sound_N], None if texts_ND is None else texts_ND[sound_N], rows, failed


def _are_sound(embeddings_ND: np.ndarray, texts_ND: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Which rows (N,) are sound, their caption's embedding too, and the norm (N,) that tells why one is not."""
    norms_N = norms(embeddings_ND)
    sound_N = is_unit(norms_N, embeddings_ND.dtype)
    if texts_ND is None:
        return sound_N, norms_N
    of_texts_N = norms(texts_ND)
    return sound_N & is_unit(of_texts_N, texts_ND.dtype), np.where(sound_N, of_texts_N, norms_N)


def _begin_copy(embeddings_BD: torch.Tensor) -> torch.Tensor:
    """Where the embeddings will be on the CPU: at once, or from CUDA, as soon as the stream comes to it."""
    if not embeddings_BD.is_cuda:
        return embeddings_BD.cpu()
    on_host_BD = torch.empty_like(embeddings_BD, device="cpu", pin_memory=True)
    on_host_BD.copy_(embeddings_BD, non_blocking=True)
    return on_host_BD


class _Handed(NamedTuple):
    """A batch on its way to the writing thread: for which output, and what to wait for before it is read."""

    output: int
    batch: EmbeddedBatch
    event: torch.cuda.Event | None


def _hand_over(output: int, batch: EmbeddedBatch) -> _Handed:
    on_host_BD = _begin_copy(batch.embeddings_BD)
    texts_BD = None if batch.texts_BD is None else _begin_copy(batch.texts_BD)
    event = None
    if batch.embeddings_BD.is_cuda:
        event = torch.cuda.Event(blocking=True)  # others spin while they are waited for, on a core for decoding
        event.record()
    return _Handed(output, replace(batch, embeddings_BD=on_host_BD, texts_BD=texts_BD), event)


def committer_of(plan: Any, root: Path, rank: int, images: int, max_reject_fraction: float) -> RangeCommitter:
    """What commits a rank's ranges of an output: alone, or as one of several jobs that share the work."""
    if plan.share is None:
        return RangeCommitter(Store(root), rank, plan.targets, images, max_reject_fraction)
    store = store_of(root, plan.share.rank(rank))
    return CellCommitter(store, store.share.me, plan.targets, images, max_reject_fraction)


class EmbeddingWriter(BasePredictionWriter):
    """Saves the embeddings of its rank into every output, by the contract of `Store`, on a thread of its own.

    `max_reject_fraction` is the share of an output's missing images that may be rejected before the run is ended.
    """

    def __init__(self, output_dirs: Sequence[Path], max_reject_fraction: float) -> None:
        super().__init__(write_interval="batch")
        self.output_dirs, self.max_reject_fraction = output_dirs, max_reject_fraction
        self._queue: queue.Queue[Sequence[_Handed] | None] = queue.Queue(WAITING_BATCHES)
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._locks: list[FolderLock] = []
        self.busy_seconds = 0.0

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Share the directories' locks and start the writing thread."""
        self._locks = [FolderLock(root) for root in self.output_dirs]
        for lock in self._locks:
            lock.share()
        plan, rank = trainer.datamodule.plan, trainer.global_rank  # type: ignore[attr-defined]
        committers = [
            committer_of(plan, root, rank, images, self.max_reject_fraction)
            for root, images in zip(self.output_dirs, plan.images_each, strict=True)
        ]
        given = committers, trainer.strategy.root_device
        self._thread = threading.Thread(target=self._write, args=given, name="writer", daemon=True)
        self._thread.start()

    def write_on_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, prediction: Mapping[int, EmbeddedBatch], *_: Any
    ) -> None:
        """Hand a batch to the thread; the copy from the device is only begun here, and waited for there."""
        self._raise_error()
        self._queue.put([_hand_over(output, batch) for output, batch in prediction.items()])

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait until everything is committed; what failed on the thread is raised here."""
        assert self._thread is not None
        self._queue.put(None)
        self._thread.join()
        self._raise_error()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _write(self, committers: Sequence[RangeCommitter], device: torch.device) -> None:
        if device.type == "cuda":
            torch.cuda.set_device(device)  # a thread begins on the first GPU, and would take memory of it for each rank
        while (handed := self._queue.get()) is not None:
            if self._error is not None:
                continue  # keep emptying the queue, so that the main thread is never stuck in put
            try:
                for output, batch, event in handed:
                    self._add(committers[output], batch, event)
            except BaseException as error:  # carried to the main thread, which ends the run
                self._error = error

    def _add(self, committer: RangeCommitter, batch: EmbeddedBatch, event: torch.cuda.Event | None) -> None:
        if event is not None:
            event.synchronize()
        started = time.perf_counter()
        committer.add(batch)
        self.busy_seconds += time.perf_counter() - started
