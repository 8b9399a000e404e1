"""What a worker does, as a WebDataset pipeline: work ranges, undecoded samples, a user's stages, batches of pixels.

Samples come from our own reader and not from `webdataset.tarfile_to_samples`, since it can start anywhere in a shard
and goes on after damage; the stages are iterators over iterators like all of WebDataset's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch.utils.data import get_worker_info
from webdataset import DataPipeline

from lora_clip.errors import DataError
from lora_clip.loading.apart import prepare_apart
from lora_clip.loading.catalog import Catalog
from lora_clip.loading.describe import describe, reject
from lora_clip.loading.encoded import EncodedBatch, empty_batch
from lora_clip.loading.hands import Hands
from lora_clip.loading.queue import WorkQueue
from lora_clip.loading.ring import Ring, SharedBatch
from lora_clip.loading.survive import Remains
from lora_clip.pixels.decode import EXACT, GPU, ImageError, prepare
from lora_clip.sources.base import Source
from lora_clip.types import PixelBatch, PreprocessSpec, RawSample, WorkRange


class PixelDataset(DataPipeline):
    """The images of one rank as PixelBatches; `queues` has one for each worker process.

    `stages` are between reading and decoding: each yields every RawSample that it takes, changed or marked.
    """

    def __init__(
        self,
        source: Source,
        spec: PreprocessSpec,
        batch_size: int,
        catalog: Catalog,
        queues: Sequence[WorkQueue],
        ring: Ring | None = None,
        decoding: str = EXACT,
        stages: Sequence[Callable[[Iterator[RawSample]], Iterable[RawSample]]] = (),
        care: Care | None = None,
    ) -> None:
        super().__init__(
            WorkRanges(queues),
            ReadSamples(source, catalog, care.remains.resume_at if care else {}),
            *stages,
            PixelBatches(spec, batch_size, decoding, ring, catalog, care),
        )


@dataclass(frozen=True)
class Care:
    """What makes workers survivable: where they note what is in hand, and what is left of those before them.

    `seconds` is how long an image may be decoded.
    """

    hands: Hands
    remains: Remains
    seconds: float


class WorkRanges:
    """The first stage: the ranges that this worker's queue has for it."""

    def __init__(self, queues: Sequence[WorkQueue]) -> None:
        self.queues = queues

    def __call__(self) -> Iterator[WorkRange]:
        """Ranges, each asked for when the one before was read."""
        worker = get_worker_info()
        return iter(self.queues[worker.id if worker else 0].next, None)


class ReadSamples:
    """Work ranges to samples, one for each position, in order."""

    def __init__(self, source: Source, catalog: Catalog, resume_at: Mapping[WorkRange, int] | None = None) -> None:
        self.source, self.catalog, self.resume_at = source, catalog, resume_at or {}

    def __call__(self, ranges: Iterable[WorkRange]) -> Iterator[RawSample]:
        """The samples of all ranges. Raises DataError where a shard has fewer than the plan counted."""
        for work in ranges:
            shard = self.catalog[work.shard]
            position = self.resume_at.get(work, work.start)
            wanted = work._replace(start=position)
            for sample in islice(self.source.read(shard, wanted), work.stop - position):
                assert (sample.shard, sample.position) == (work.shard, position), "a source reads position by position"
                yield sample.during(work)
                position += 1
            if position < work.stop:
                raise DataError(
                    f"{shard.path} changed while it was read: {shard.images} images were counted in it, "
                    "fewer are there now"
                )


class PixelBatches:
    """The last stage: samples to batches of one fixed shape and fixed borders, decoded into the batch's own memory.

    Images fill a batch from its start; rejected ones take no place, so that what follows the images is padding. Where
    the device decodes, they are EncodedBatches.
    """

    def __init__(
        self,
        spec: PreprocessSpec,
        batch_size: int,
        decoding: str = EXACT,
        ring: Ring | None = None,
        catalog: Catalog | None = None,
        care: Care | None = None,
    ) -> None:
        self.spec, self.batch_size, self.decoding, self.ring = spec, batch_size, decoding, ring
        self.catalog, self.care = catalog, care

    def __call__(self, samples: Iterable[RawSample]) -> Iterator[PixelBatch]:
        """The batches; `seconds` is the time spent on each, without that spent waiting for a free buffer."""
        batch: PixelBatch | None = None
        read = decoded = 0.0
        since = time.perf_counter()
        for sample in samples:
            began = time.perf_counter()
            read += began - since
            if batch is None:
                batch = self._empty(sample.work)
                began = time.perf_counter()
            self._add(sample, batch)
            since = time.perf_counter()
            decoded += since - began
            if self._ends(batch, sample.position + 1):
                batch.seconds = {"read": read, "decode": decoded}
                self._tell(batch)
                yield batch
                batch, read, decoded = None, 0.0, 0.0
                since = time.perf_counter()
        assert batch is None, "ranges are read to their ends"

    def _empty(self, work: WorkRange | None) -> PixelBatch:
        assert work is not None
        worker = get_worker_info()
        slot = None
        if self.ring is None or worker is None:
            pixels_BCHW = torch.empty(batch_shape(self.batch_size, self.spec), dtype=torch.uint8)
        else:
            pixels_BCHW, slot = self.ring.take(worker.id)
        if self.decoding == GPU:
            return empty_batch(pixels_BCHW, work, slot)
        if slot is None:
            return PixelBatch(pixels_BCHW, [], [], work, last=False)
        return SharedBatch(pixels_BCHW, [], [], work, last=False, slot=slot)

    def _tell(self, batch: PixelBatch) -> None:
        """What the plan did not know of the batch's shard."""
        if self.catalog is not None:
            batch.bytes = self.catalog.part(batch.work.shard, batch.bytes)
            batch.counted = self.catalog.news(batch.work.shard) if batch.last else None

    def _ends(self, batch: PixelBatch, stop: int) -> bool:
        """Whether a batch ends before position `stop`; it is padded then."""
        batch.last = stop == batch.work.stop
        if not batch.last and (stop - batch.work.start) % self.batch_size:
            return False
        batch.pixels_BCHW[len(batch.rows) :] = 0
        return True

    def _add(self, sample: RawSample, batch: PixelBatch) -> None:
        batch.bytes += len(sample.image)
        if sample.damage is not None:
            batch.rejects.append(reject(sample, "read", sample.damage))
        elif sample.filtered is not None:
            batch.rejects.append(reject(sample, "filter", sample.filtered))
        else:
            self._decode(sample, batch)

    def _decode(self, sample: RawSample, batch: PixelBatch) -> None:
        try:
            height, width = self._prepare(sample, batch)
        except (ImageError, MemoryError) as error:
            batch.rejects.append(reject(sample, "decode", str(error) or type(error).__name__))
            return
        batch.rows.append(describe(sample, width, height))

    def _prepare(self, sample: RawSample, batch: PixelBatch) -> tuple[int, int]:
        """Decode an image, noting that it is in hand, or leave it to the device."""
        worker = get_worker_info()
        if self.care is None or worker is None:
            return self._take(sample, batch) or self._here(sample, batch)
        self.care.hands.begin(worker.id, sample.shard, sample.position)
        try:
            # whoever died with it in hand: what the device decodes it decodes again, for the same bytes
            return self._take(sample, batch) or self._with_care(sample, batch, self.care)
        finally:
            self.care.hands.end(worker.id)

    def _take(self, sample: RawSample, batch: PixelBatch) -> tuple[int, int] | None:
        return batch.take(sample.image, self.spec) if isinstance(batch, EncodedBatch) else None

    def _with_care(self, sample: RawSample, batch: PixelBatch, care: Care) -> tuple[int, int]:
        """Decode an image, apart from this process if another one died of it."""
        if (sample.shard, sample.position) not in care.remains.suspects:
            return self._here(sample, batch)
        out_CHW = batch.pixels_BCHW[len(batch.rows)]
        return prepare_apart(sample.image, self.spec, out_CHW, self.decoding, care.seconds)

    def _here(self, sample: RawSample, batch: PixelBatch) -> tuple[int, int]:
        return prepare(sample.image, self.spec, batch.pixels_BCHW[len(batch.rows)], self.decoding)


def batch_shape(batch_size: int, spec: PreprocessSpec) -> tuple[int, int, int, int]:
    """(B, C, H, W) of a batch of pixels."""
    return batch_size, 3, *spec.crop
