"""The network that runs: uint8 pixels through a tower to unit vectors, cast, compiled, and checked as it will run."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional

from lora_clip.models.compute import Compute
from lora_clip.types import PreprocessSpec

CHUNK = 16
"""How many images a CPU takes at once: what passes between layers then stays in its caches."""
COMPILE: dict[str, Any] = {"dynamic": False}
"""How torch.compile is asked: batches have one shape, so nothing is paid for others."""
PROBE_IMAGES = 2


class ImageEncoder(nn.Module):
    """A tower on batches of uint8 pixels; its embeddings have unit norm."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D) of uint8 pixels (B, C, H, W), float32, of unit L2 norm."""
        chunks = pixels_BCHW.split(CHUNK) if pixels_BCHW.device.type == "cpu" else (pixels_BCHW,)
        return functional.normalize(torch.cat([self.tower(chunk) for chunk in chunks]).float(), dim=-1)

    def prepare(self, compute: Compute) -> Self:
        """Cast and compile, in place; everything that comes between the merged model and the network that runs."""
        for parameter in self.parameters():
            # out of the file's mapping: how that happens to be aligned would show in the last bits of a product
            parameter.data = parameter.data.clone()
        self.tower.cast(compute.dtype)  # type: ignore[operator]
        self.eval().requires_grad_(False)
        if compute.compile:
            self.tower.compile(**COMPILE)
        return self


def probe(spec: PreprocessSpec, device: torch.device) -> torch.Tensor:
    """Fixed random pixels (PROBE_IMAGES, C, H, W) uint8, on which two networks are compared."""
    generator = torch.Generator().manual_seed(0)
    shape = (PROBE_IMAGES, 3, *spec.crop)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)


def least_cosine(dtype: torch.dtype) -> float:
    """How close a network that computes in `dtype` must be to the unmerged model in float32."""
    return 0.9999 if dtype == torch.float32 else 0.999


def lowest_cosine(expected_BD: torch.Tensor, encoder: ImageEncoder, compute: Compute, spec: PreprocessSpec) -> float:
    """The lowest cosine between what a prepared encoder makes of the probe, at the batch's shape, and what it should.

    The probe is repeated to fill the batch. A CPU takes a batch in chunks: a whole one and the batch's last, shorter
    one are all the shapes that it will meet. Centred cosines are left to the tests, on pictures: on noise they say
    little of them (the demo in bfloat16: 0.9993 on the probe, 0.99995 on its pictures; deep towers down to 0.996).
    """
    size = compute.batch_size
    if compute.device.type == "cpu":
        size = min(size, CHUNK + size % CHUNK)
    size = max(size, PROBE_IMAGES)
    of_B = torch.arange(size) % PROBE_IMAGES
    # made as a batch is, outside inference mode: torch.compile would compile anew for the other kind of tensor
    pixels_BCHW = probe(spec, torch.device("cpu"))[of_B]
    with torch.inference_mode():
        embeddings_BD = encoder(pixels_BCHW.to(compute.device))
        return float(functional.cosine_similarity(expected_BD[of_B.to(compute.device)].float(), embeddings_BD).min())
