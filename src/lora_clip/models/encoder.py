"""The network that runs: uint8 pixels through a tower to unit vectors, cast and compiled; proof.py checks it."""

from __future__ import annotations

from math import ceil
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional

from lora_clip.models.compute import Compute
from lora_clip.models.quantization import quantize

CHUNK = 16
"""How many images a CPU takes at once: what passes between layers then stays in its caches."""
COMPILE: dict[str, Any] = {"dynamic": False}
"""How torch.compile is asked: batches have one shape, so nothing is paid for others."""


class ImageEncoder(nn.Module):
    """A tower on batches of uint8 pixels; its embeddings have unit norm."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels_BCHW: torch.Tensor, images: int | None = None) -> torch.Tensor:
        """Embeddings (B, D) of uint8 pixels (B, C, H, W), float32, of unit L2 norm.

        Of a batch of which only the first `images` are images a CPU gives no more rows than it must.
        """
        on_cpu = pixels_BCHW.device.type == "cpu"
        chunks = _chunks(pixels_BCHW, images) if on_cpu else (pixels_BCHW,)
        return functional.normalize(torch.cat([self.tower(chunk) for chunk in chunks]).float(), dim=-1)

    def prepare(self, compute: Compute) -> Self:
        """Cast and compile, in place; everything that comes between the merged model and the network that runs."""
        for parameter in self.parameters():
            # out of the file's mapping: how that happens to be aligned would show in the last bits of a product
            parameter.data = parameter.data.clone()
        self.tower.cast(compute.product_dtype)  # type: ignore[operator]
        self.eval().requires_grad_(False)
        if compute.quantized:
            quantize(self.tower, compute.dtype)
        if compute.compile:
            # a layer at a time: those of one kind have one shape and share one compiled form
            for region in self.tower.regions():  # type: ignore[operator]
                region.compile(**COMPILE)
        return self


def _chunks(pixels_BCHW: torch.Tensor, images: int | None) -> tuple[torch.Tensor, ...]:
    """A batch in parts for a CPU, as far as there are images in them: padding has its cost in small shards.

    Parts keep their shape, since another might be computed by another kernel, with other last bits.
    """
    wanted = len(pixels_BCHW) if images is None else max(1, ceil(images / CHUNK)) * CHUNK
    return pixels_BCHW[:wanted].split(CHUNK)
