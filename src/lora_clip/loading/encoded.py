"""Batches for `data.decode=gpu`: ordinary JPEGs as the bytes that they are, all other images as pixels.

The worker that reads an image decides by its header. What the device's decoder refuses all the same is decoded on the
CPU, as the worker would have: it costs that image's row or reject, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lora_clip.loading.apart import prepare_apart
from lora_clip.loading.ring import SharedBatch, Slot, ring_of
from lora_clip.pixels.decode import EXACT, EXIF, TRANSPOSED, UPRIGHT, ImageError, orientation, prepare
from lora_clip.pixels.jpeg import ordinary_size
from lora_clip.pixels.on_device import DeviceDecoder, decode_each, fit_on_device, in_calls, suits_device
from lora_clip.types import ImageRow, PixelBatch, PreprocessSpec, Reject, WorkRange

BYTES_AN_IMAGE = 512 << 10
"""Room for encoded bytes, times the batch: ordinary photographs take a fifth of it. What does not fit, as where all are
of 12 megapixels, the workers decode: cores and device then share the work."""


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """Where a JPEG's bytes lie, which `place` in the batch it has, its own number of pixels, its EXIF orientation."""

    place: int
    start: int
    stop: int
    pixels: int
    turn: int


@dataclass(slots=True)
class EncodedBatch(SharedBatch):
    """A batch some of whose images are still JPEGs: their bytes lie in `encoded`, and their places have no pixels yet.

    Without a slot its memory is its own.
    """

    encoded: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    images: list[EncodedImage] = field(default_factory=list)

    def take(self, data: bytes, spec: PreprocessSpec) -> tuple[int, int] | None:
        """Keep an ordinary JPEG as the batch's next image: its (height, width); None where it is to be decoded here."""
        start = self.images[-1].stop if self.images else 0
        stop = start + len(data)
        if stop > len(self.encoded) or (size := ordinary_size(data)) is None:
            return None
        turn = orientation(data) if spec.orientation == EXIF else UPRIGHT
        height, width = size[::-1] if turn in TRANSPOSED else size
        if not suits_device(height, width, spec):
            return None
        self.encoded[start:stop].numpy()[:] = np.frombuffer(data, dtype=np.uint8)
        self.images.append(EncodedImage(len(self.rows), start, stop, height * width, turn))
        return height, width

    def bytes_of(self, image: EncodedImage) -> bytes:
        """The file of one of its images."""
        return self.encoded[image.start : image.stop].numpy().tobytes()

    def __reduce__(self) -> tuple[Any, ...]:
        assert self.slot is not None
        return _arrive, (self.slot, ring_of(self.slot).keep(self.slot, (self.told(), self.images)))

    def to(self, device: torch.device) -> PixelBatch:
        """Itself: decoders read the bytes where they are."""
        return self

    def pin_memory(self) -> PixelBatch:
        """Itself, as above."""
        return self

    def release(self) -> None:
        """Let the worker have the buffer again, where a worker filled it."""
        if self.slot is not None:
            ring_of(self.slot).release(self.slot)


def empty_batch(pixels_BCHW: torch.Tensor, work: WorkRange, slot: Slot | None) -> EncodedBatch:
    """A batch to be filled, in a ring's buffer or in memory of its own."""
    encoded = torch.empty(room(len(pixels_BCHW)), dtype=torch.uint8) if slot is None else ring_of(slot).encoded(slot)
    return EncodedBatch(pixels_BCHW, [], [], work, last=False, slot=slot, encoded=encoded)


def room(batch_size: int) -> int:
    """How many bytes of JPEGs a batch may hold."""
    return batch_size * BYTES_AN_IMAGE


def _arrive(slot: Slot, size: int) -> EncodedBatch:
    ring = ring_of(slot)
    told, images = ring.kept(slot, size)
    return EncodedBatch(ring.pixels(slot), **told, slot=slot, encoded=ring.encoded(slot), images=images)


class DeviceDecoding:
    """Makes pixels on the device of a rank's EncodedBatches; `seconds` is how long the CPU may take for one image."""

    def __init__(self, decoder: DeviceDecoder, spec: PreprocessSpec, seconds: float) -> None:
        self.decoder, self.spec, self.seconds = decoder, spec, seconds
        device = decoder.device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: EncodedBatch) -> PixelBatch:
        """The batch with its pixels on the device, and its buffer free again."""
        with self._beside_the_model():
            pixels_BCHW = self._of_the_worker(batch)
            refused = self.decode(batch.encoded, batch.images, pixels_BCHW)
            failed = {one.place: why for one in refused if (why := self._again(batch, one, pixels_BCHW[one.place]))}
            pixels_BCHW = _without(pixels_BCHW, failed, len(batch.rows))
        if self._stream is not None:
            pixels_BCHW.record_stream(torch.cuda.current_stream(self.decoder.device))
        told = batch.told() | _rows_and_rejects(batch, failed)
        batch.release()
        return PixelBatch(pixels_BCHW, **told)

    def decode(
        self, encoded: torch.Tensor, images: Sequence[EncodedImage], pixels_BCHW: torch.Tensor
    ) -> list[EncodedImage]:
        """Put each image's pixels into its place in a batch on the device; returns those that the decoder refuses."""
        refused = []
        for call in in_calls([one.pixels for one in images]):
            found = decode_each(self.decoder, [encoded[one.start : one.stop] for one in images[call]])
            for one, pixels_CHW in zip(images[call], found, strict=True):
                if pixels_CHW is None:
                    refused.append(one)
                else:
                    fit_on_device(pixels_CHW, one.turn, self.spec, pixels_BCHW[one.place])
        return refused

    @contextmanager
    def _beside_the_model(self) -> Iterator[None]:
        """On a stream of its own: the device resizes the next batch while it still embeds the one before."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.current_stream(self.decoder.device).wait_stream(self._stream)

    def _of_the_worker(self, batch: EncodedBatch) -> torch.Tensor:
        """The batch on the device: what the worker has decoded, and black where something comes, or nothing."""
        pixels_BCHW = torch.zeros_like(batch.pixels_BCHW, device=self.decoder.device)
        encoded = {one.place for one in batch.images}
        if made := [place for place in range(len(batch.rows)) if place not in encoded]:
            pixels_BCHW[made] = batch.pixels_BCHW[made].to(self.decoder.device)
        return pixels_BCHW

    def _again(self, batch: EncodedBatch, image: EncodedImage, out_CHW: torch.Tensor) -> str | None:
        """Decode on the CPU what the device refused; why that cannot be done either, or None."""
        data, place_CHW = batch.bytes_of(image), batch.pixels_BCHW[image.place]
        try:
            if batch.slot is None:
                prepare(data, self.spec, place_CHW)
            else:  # a decoder may crash, and this is the rank itself; its fork writes into the ring
                prepare_apart(data, self.spec, place_CHW, EXACT, self.seconds)
        except (ImageError, MemoryError) as error:
            return str(error) or type(error).__name__
        out_CHW.copy_(place_CHW)
        return None


def _without(pixels_BCHW: torch.Tensor, failed: dict[int, str], images: int) -> torch.Tensor:
    """A batch whose failed images take no place, as a worker would have made it."""
    if not failed:
        return pixels_BCHW
    kept = [place for place in range(images) if place not in failed]
    without_BCHW = torch.zeros_like(pixels_BCHW)
    without_BCHW[: len(kept)] = pixels_BCHW[kept]
    return without_BCHW


def _rows_and_rejects(batch: EncodedBatch, failed: dict[int, str]) -> dict[str, Any]:
    rows = [row for place, row in enumerate(batch.rows) if place not in failed]
    rejects = [*batch.rejects, *(_reject(batch.rows[place], why) for place, why in failed.items())]
    return {"rows": rows, "rejects": sorted(rejects, key=lambda one: one.position)}


def _reject(row: ImageRow, error: str) -> Reject:
    return Reject(row.shard, row.position, row.key, "decode", error)
