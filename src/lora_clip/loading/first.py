"""The first images of a job, read before its workers are there: what a model is tried on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple, replace
from typing import Any

import torch

from lora_clip.loading.apart import DiedError, run_apart
from lora_clip.loading.catalog import Catalog
from lora_clip.loading.dataset import PixelDataset
from lora_clip.loading.encoded import EncodedBatch, EncodedImage, room
from lora_clip.loading.plan import Plan
from lora_clip.loading.queue import GivenRanges
from lora_clip.loading.ring import shared
from lora_clip.pixels.decode import GPU, ImageError, prepare
from lora_clip.sources.base import Source
from lora_clip.types import UNCOUNTED, PixelBatch, PreprocessSpec, WorkRange


def first_images(
    source: Source, spec: PreprocessSpec, plan: Plan, images: int, decoding: str, seconds: float
) -> torch.Tensor:
    """Pixels (N, C, H, W), uint8, of up to so many images of rank 0's run of the input; rejects are left out.

    Not by way of the user's stages: what these remember of a sample would be there when it comes again. A fork reads
    and decodes them: none where it dies of one, or takes longer than some seconds.
    """
    pixels_NCHW = shared(images, 3, *spec.crop)

    def work() -> dict[str, int]:
        read_NCHW = _read(source, spec, plan, images, decoding)
        pixels_NCHW[: len(read_NCHW)] = read_NCHW
        return {"images": len(read_NCHW)}

    try:
        found = run_apart(work, seconds)
    except DiedError:
        return pixels_NCHW[:0]
    return pixels_NCHW[: found.get("images", 0)]


def first_encoded(
    source: Source, spec: PreprocessSpec, plan: Plan, images: int, seconds: float
) -> tuple[torch.Tensor, torch.Tensor, list[EncodedImage]]:
    """Of up to so many images those that a device would decode: their pixels as the CPU decodes them, and their bytes.

    Pixels are (N, C, H, W), bytes (bytes,), with where in them each one lies. Read by a fork, as above.
    """
    pixels_NCHW, encoded = shared(images, 3, *spec.crop), shared(room(images))

    def work() -> dict[str, Any]:
        batches = _batches(source, spec, plan, images, GPU)
        return {"images": [astuple(one) for one in _copy_encoded(batches, spec, pixels_NCHW, encoded)]}

    try:
        told = run_apart(work, seconds).get("images", [])
    except DiedError:
        told = []
    return pixels_NCHW[: len(told)], encoded, [EncodedImage(*one) for one in told]


def _copy_encoded(
    batches: Iterable[PixelBatch], spec: PreprocessSpec, pixels_NCHW: torch.Tensor, encoded: torch.Tensor
) -> list[EncodedImage]:
    """In the fork: what is in batches, decoded and not, into memory that it shares, as far as there is room."""
    found: list[EncodedImage] = []
    both = ((batch, one) for batch in batches if isinstance(batch, EncodedBatch) for one in batch.images)
    for holder, one in both:
        start = found[-1].stop if found else 0
        stop = start + one.stop - one.start
        if len(found) == len(pixels_NCHW) or stop > len(encoded):
            break
        with suppress(ImageError):
            prepare(holder.bytes_of(one), spec, pixels_NCHW[len(found)])
            encoded[start:stop] = holder.encoded[one.start : one.stop]
            found.append(replace(one, place=len(found), start=start, stop=stop))
    return found


def _batches(source: Source, spec: PreprocessSpec, plan: Plan, images: int, decoding: str) -> PixelDataset:
    catalog = Catalog(source, plan.shards)
    queue = GivenRanges(first_of_each(_counted(plan, catalog), plan.workers, images))
    return PixelDataset(source, spec, images, catalog, [queue], None, decoding)


def _read(source: Source, spec: PreprocessSpec, plan: Plan, images: int, decoding: str) -> torch.Tensor:
    batches = _batches(source, spec, plan, images, decoding)
    sound = [batch.pixels_BCHW[: len(batch.rows)] for batch in batches]
    return torch.cat(sound)[:images] if sound else torch.empty((0, 3, *spec.crop), dtype=torch.uint8)


def _counted(plan: Plan, catalog: Catalog) -> list[WorkRange]:
    """Gaps whose images are counted; where none is, the first one after it was counted."""
    gaps = plan.gaps[slice(*plan.runs[0])] or plan.gaps[:1]
    counted = [gap for gap in gaps if gap.stop != UNCOUNTED]
    return counted or [WorkRange(gap.shard, gap.start, catalog.images(gap.shard)) for gap in gaps[:1]]


def first_of_each(gaps: Sequence[WorkRange], parts: int, images: int) -> Iterator[WorkRange]:
    """The first positions of each of some equal parts of gaps, together so many or as many as there are, rounded up."""
    parts = min(parts, len(gaps))
    for part in range(parts):
        left = -(-images // parts)
        for gap in gaps[part * len(gaps) // parts : (part + 1) * len(gaps) // parts]:
            if left > 0:
                yield WorkRange(gap.shard, gap.start, min(gap.stop, gap.start + left))
            left -= gap.stop - gap.start
