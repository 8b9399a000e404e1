"""What decoding on the device costs: how far some of the user's own images are from those that the CPU decodes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lora_clip.models.compute import Compute
from lora_clip.models.encoder import ImageEncoder
from lora_clip.models.proof import lowest_cosines, run_as_it_will


@dataclass(frozen=True)
class Distance:
    """Of so many `images`: pixel values (0 to 255) apart on average and at most, and the embeddings' lowest cosines.

    `centred` is taken after subtracting the images' mean embedding; None where fewer than ENOUGH of them differ.
    """

    images: int
    mean: float
    most: int
    cosine: float
    centred: float | None


def distance(encoder: ImageEncoder, compute: Compute, exact_NCHW: torch.Tensor, device_NCHW: torch.Tensor) -> Distance:
    """The distance between the same images decoded in two ways, by the network that runs."""
    apart_NCHW = (exact_NCHW.int() - device_NCHW.cpu().int()).abs()
    expected_ND, found_ND = (
        run_as_it_will(encoder, pixels_NCHW.cpu(), compute)[: len(exact_NCHW)]
        for pixels_NCHW in (exact_NCHW, device_NCHW)
    )
    cosines = lowest_cosines(exact_NCHW, expected_ND, found_ND)
    return Distance(len(exact_NCHW), float(apart_NCHW.float().mean()), int(apart_NCHW.max()), *cosines)
