"""The DataModule: the plan as a rank receives it, its workers, and the DataLoader that brings their batches."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from lora_clip.errors import PeerError
from lora_clip.io.process import end_with_parent
from lora_clip.loading.catalog import Catalog
from lora_clip.loading.claims import ClaimingQueue, OneByOne
from lora_clip.loading.company import Company
from lora_clip.loading.counters import Counters, Store
from lora_clip.loading.dataset import Care, PixelDataset, batch_shape
from lora_clip.loading.deal import deal
from lora_clip.loading.direct import DIRECT, PINNED, DirectCopies
from lora_clip.loading.encoded import DeviceDecoding, EncodedBatch, room
from lora_clip.loading.first import first_encoded, first_images
from lora_clip.loading.hands import Hands
from lora_clip.loading.plan import Plan
from lora_clip.loading.queue import AgainFirst, SharedQueue, WorkQueue
from lora_clip.loading.ring import Ring, SharedBatch
from lora_clip.loading.stages import Stage
from lora_clip.loading.survive import Remains, SurvivingBatches
from lora_clip.output.share import Share, keep_beating
from lora_clip.pixels import nvjpeg
from lora_clip.pixels.decode import EXACT, GPU
from lora_clip.sources.base import Source
from lora_clip.types import PixelBatch, PreprocessSpec

PREFETCHED_BATCHES = 2
HELD_BATCHES = 2
"""How many batches the main process may hold: the one in the model, and the next."""
NICENESS = 10
"""Of workers beside a model on the CPU: its threads wait for one another, so one held up by decoding holds up all."""


class PixelDataModule(LightningDataModule):
    """The batches of a rank: rank 0 brings the `plan`, the others receive it in `setup`.

    `batch_size` is per device, `num_workers` per rank; `decoding` is `exact`, `fast` or `gpu`; `stages` are the user's;
    `decode_seconds` is how long an image may be decoded. `lost` hears of a rank that has to be given up. `copies` to a
    GPU are `pinned` or `direct`.
    """

    def __init__(
        self,
        source: Source,
        spec: PreprocessSpec,
        batch_size: int,
        num_workers: int,
        decoding: str = EXACT,
        stages: Sequence[Stage] = (),
        decode_seconds: float = 120,
        lost: Callable[[PeerError], Any] | None = None,
        copies: str = PINNED,
    ) -> None:
        super().__init__()
        self.copies = copies
        self.decode_seconds = decode_seconds
        self.source, self.spec, self.decoding, self.stages = source, spec, decoding, stages
        self.batch_size, self.num_workers = batch_size, num_workers
        self.plan: Plan | None = None
        self._counters: Counters | None = None
        self._served: Any = None
        self._lost = lost
        self._company: Company | None = None
        self._begun: Iterator[PixelBatch] | None = None
        self._share: Share | None = None

    def setup(self, stage: str) -> None:
        """Receive the plan of rank 0, and the counters by which all workers share it."""
        self.plan, self._counters, self._served = deal(self.plan)
        if self.plan.share is not None and self.trainer is not None:
            self._share = self.plan.share.rank(self.trainer.global_rank)
            keep_beating(self._share)
        if isinstance(self._counters, Store) and self._lost is not None:
            assert self.trainer is not None
            self._company = Company(self._counters, self.trainer.global_rank, self.trainer.world_size, self._lost)

    def at_work(self) -> None:
        """Note that this rank still gets batches: it gives nobody up."""
        if self._company is not None:
            self._company.at_work()

    def leave(self) -> None:
        """Part from the other ranks: from now on they may end, and this one."""
        if self._company is not None:
            self._company.leave()

    def first_images(self, images: int) -> torch.Tensor:
        """The pixels (N, C, H, W) of up to so many images of this rank, to try a model on before the job begins."""
        assert self.plan is not None
        decoding = EXACT if self.decoding == GPU else self.decoding
        return first_images(self.source, self.spec, self.plan, images, decoding, self.decode_seconds)

    def first_both(self, images: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Those of them that the device decodes, by the CPU and by the device: pixels (N, C, H, W) each, or None.

        Raises ConfigError where the device cannot decode.
        """
        if self.decoding != GPU:
            return None
        exact_NCHW, encoded, found = first_encoded(self.source, self.spec, self._plan, images, self.decode_seconds)
        device_NCHW = exact_NCHW.to(self.device_decoding.decoder.device, copy=True)
        refused = self.device_decoding.decode(encoded, found, device_NCHW)
        places = [one.place for one in found if one not in refused]
        return (exact_NCHW[places], device_NCHW[places]) if places else None

    @cached_property
    def device_decoding(self) -> DeviceDecoding:
        """What decodes on the rank's device, opened when it is first needed. Raises ConfigError where nothing does."""
        assert self.trainer is not None
        decoder = nvjpeg.open_decoder(self.trainer.strategy.root_device)
        return DeviceDecoding(decoder, self.spec, self.decode_seconds)

    @cached_property
    def _direct(self) -> DirectCopies:
        assert self.trainer is not None
        return DirectCopies(self.trainer.strategy.root_device)

    def transfer_batch_to_device(self, batch: PixelBatch, device: torch.device, dataloader_idx: int) -> PixelBatch:
        """Copy a batch as `copies` says; JPEGs stay where they are."""
        if self.copies == DIRECT and isinstance(batch, SharedBatch) and not isinstance(batch, EncodedBatch):
            return self._direct(batch)
        return batch.to(device)

    def on_after_batch_transfer(self, batch: PixelBatch, dataloader_idx: int) -> PixelBatch:
        """Decode what the device is to decode, before anyone counts the batch's rows."""
        return self.device_decoding(batch) if isinstance(batch, EncodedBatch) else batch

    def begin(self) -> None:
        """Start the workers: what they decode while models are loaded is there for the first steps."""
        workers = self.workers
        if not workers:
            self._begun = iter(self.loader(Remains(), Hands(0)))
            return
        assert self._counters is not None
        self._begun = SurvivingBatches(self.loader, workers, self.batch_size, self.decode_seconds, self._counters.held)

    def predict_dataloader(self) -> Iterator[PixelBatch] | OneByOne:
        """The batches of this rank, as soon as any worker has one; the workers are those that `begin` started."""
        if self._begun is None:
            self.begin()
        begun, self._begun = self._begun, None
        assert begun is not None
        return begun if self._share is None else OneByOne(begun)

    @property
    def workers(self) -> int:
        """How many worker processes this rank has.

        As many as the plan has: a rank whose cores are others than rank 0's must count them as rank 0 does.
        """
        assert self.plan is not None
        return self.plan.workers if self.num_workers and self.plan.gaps else 0

    def loader(self, remains: Remains, hands: Hands) -> DataLoader[PixelBatch]:
        """The DataLoader over what this rank gets of the work, and of what earlier workers left."""
        workers = self.workers
        return DataLoader(
            self._dataset(workers, Care(hands, remains, self.decode_seconds)),
            batch_size=None,  # the dataset makes batches itself, of fixed borders
            num_workers=workers,
            prefetch_factor=PREFETCHED_BATCHES if workers else None,
            pin_memory=self._device_type == "cuda" and self.copies == PINNED,
            worker_init_fn=partial(_prepare_worker, self._niceness()) if workers else None,
            in_order=False,  # a batch says where it belongs, so none waits for a slower worker's
            multiprocessing_context="fork" if workers else None,  # the ring is inherited, not sent
        )

    def _dataset(self, workers: int, care: Care) -> PixelDataset:
        catalog, ring = Catalog(self.source, self._plan.shards), self._ring(workers) if workers else None
        queues = [self._queue(worker, catalog, care) for worker in range(self._plan.workers)]
        return PixelDataset(
            self.source, self.spec, self.batch_size, catalog, queues, ring, self.decoding, self.stages, care
        )  # fmt: skip

    @property
    def _plan(self) -> Plan:
        assert self.plan is not None
        return self.plan

    def _queue(self, worker: int, catalog: Catalog, care: Care) -> WorkQueue:
        """A worker's part of what comes again, and then what it gets of the shared work."""
        assert self._counters is not None and self.trainer is not None
        note, again = partial(care.hands.take, worker), care.remains.ranges[worker :: self._plan.workers]
        if self._share is not None:
            drop = partial(care.hands.drop, worker)
            return AgainFirst(again, ClaimingQueue(self._plan, self._share, worker, catalog, note, drop))
        shared = SharedQueue(self._plan, self._counters, self.trainer.global_rank, worker, catalog.images, note)
        return AgainFirst(again, shared)

    @property
    def _device_type(self) -> str:
        """Of the device in use, which on a machine with a GPU may be the CPU."""
        assert self.trainer is not None
        return self.trainer.strategy.root_device.type

    def _niceness(self) -> int:
        return NICENESS if self._device_type == "cpu" else 0

    def _ring(self, workers: int) -> Ring | None:
        """Shared buffers, where they are read before `release`: a CPU does, and so do both ways of copying to CUDA."""
        if self._device_type not in ("cpu", "cuda"):
            return None
        encoded = room(self.batch_size) if self.decoding == GPU else 0
        return Ring(workers, PREFETCHED_BATCHES + HELD_BATCHES, batch_shape(self.batch_size, self.spec), encoded)


class EarlyBatches(Callback):
    """Workers are forked before models are loaded: the first batches wait for the model, not the model for them.

    A callback, since Lightning sets up the DataModule first, and the monitor must have seen who was there before.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """The plan is there, and models come next."""
        trainer.datamodule.begin()  # type: ignore[attr-defined]

    def on_predict_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """A batch is there."""
        trainer.datamodule.at_work()  # type: ignore[attr-defined]


def _prepare_worker(niceness: int, _: int) -> None:
    """Ctrl-C reaches every process of the terminal; the rank's main process decides what it means, and when to end."""
    os.nice(niceness)  # see NICENESS
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _mute_libraries()
    sys.excepthook = lambda *_: None  # errors go to the main process; only its sudden end would be complained of here
    end_with_parent()


def _mute_libraries() -> None:
    """Let what C libraries print of images they do not like tear no progress bar; Python's own stderr stays."""
    stderr = os.dup(2)
    with Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    sys.stderr = os.fdopen(stderr, "w", buffering=1)
