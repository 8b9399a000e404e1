"""The first images of a job, read before its workers are there: what a model is tried on."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from math import prod

import torch

from lora_clip.loading.apart import DiedError, run_apart
from lora_clip.loading.catalog import Catalog
from lora_clip.loading.dataset import PixelDataset
from lora_clip.loading.plan import Plan
from lora_clip.loading.queue import GivenRanges
from lora_clip.sources.base import Source
from lora_clip.types import UNCOUNTED, PreprocessSpec, WorkRange


def first_images(
    source: Source, spec: PreprocessSpec, plan: Plan, images: int, decoding: str, seconds: float
) -> torch.Tensor:
    """Pixels (N, C, H, W), uint8, of up to so many images of rank 0's run of the input; rejects are left out.

    Not by way of the user's stages: what these remember of a sample would be there when it comes again. A fork reads
    and decodes them: none where it dies of one, or takes longer than some seconds.
    """
    shape = (images, 3, *spec.crop)
    pixels_NCHW = torch.frombuffer(mmap.mmap(-1, max(1, prod(shape))), dtype=torch.uint8)[: prod(shape)].view(shape)

    def work() -> dict[str, int]:
        read_NCHW = _read(source, spec, plan, images, decoding)
        pixels_NCHW[: len(read_NCHW)] = read_NCHW
        return {"images": len(read_NCHW)}

    try:
        found = run_apart(work, seconds)
    except DiedError:
        return pixels_NCHW[:0]
    return pixels_NCHW[: found.get("images", 0)]


def _read(source: Source, spec: PreprocessSpec, plan: Plan, images: int, decoding: str) -> torch.Tensor:
    catalog = Catalog(source, plan.shards)
    queue = GivenRanges(first_of_each(_counted(plan, catalog), plan.workers, images))
    batches = PixelDataset(source, spec, images, catalog, [queue], None, decoding)
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
