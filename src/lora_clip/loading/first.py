"""The first images of a rank's work, read before its workers are there: what a model is tried on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from lora_clip.loading.dataset import PixelDataset
from lora_clip.loading.plan import RankPlan
from lora_clip.loading.queue import PlannedQueue
from lora_clip.sources.base import Source
from lora_clip.types import PreprocessSpec, WorkRange


def first_images(source: Source, spec: PreprocessSpec, plan: RankPlan, images: int, decoding: str) -> torch.Tensor:
    """Pixels (N, C, H, W), uint8, of up to so many images, spread over where the workers begin; rejects are left out.

    Not by way of the user's stages: what these remember of a sample would be there when it comes again.
    """
    queue = PlannedQueue(first_of_each(plan.shares, images))
    batches = PixelDataset(source, spec, images, plan.shards, [queue], None, decoding)
    sound = [batch.pixels_BCHW[: len(batch.rows)] for batch in batches]
    return torch.cat(sound)[:images] if sound else torch.empty((0, 3, *spec.crop), dtype=torch.uint8)


def first_of_each(shares: Sequence[Sequence[WorkRange]], images: int) -> Iterator[WorkRange]:
    """The first positions of each worker's share, together so many or as many as there are, rounded up."""
    busy = [share for share in shares if share]
    for share in busy:
        left = -(-images // len(busy))
        for work in share:
            if left > 0:
                yield WorkRange(work.shard, work.start, min(work.stop, work.start + left))
            left -= work.stop - work.start
