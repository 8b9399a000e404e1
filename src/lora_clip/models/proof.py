"""The proof of a network: how close what runs (cast, compiled, merged) comes to the model in float32, on which images.

It embeds two fixed images of noise, which decide whether it is the model that was asked for, and some of the user's
own, which tell what its dtype costs there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from lora_clip.models.compute import Compute
from lora_clip.models.encoder import CHUNK, ImageEncoder
from lora_clip.types import PreprocessSpec

PROBE_IMAGES = 2
LEAST_CENTRED = 0.999
FEW, ENOUGH = 2, 16
"""How many of the user's images are embedded twice: in float32, where only a wrong network differs, and otherwise."""
ALL = slice(None)
BASE, UNMERGED, MERGED = "base", "unmerged", "merged"
"""What is compared with: the float32 model alone, with the adapter beside its weights, or, of a sum, in them."""


@dataclass(frozen=True)
class Proof:
    """The lowest cosines, over so many `images` of the user's own, of the network that runs to the float32 `reference`.

    `centred` is taken after subtracting the images' mean embedding, since what tells images apart is the rest; None
    where fewer than ENOUGH of them differ.
    """

    images: int
    reference: str
    cosine: float
    centred: float | None


def probe(spec: PreprocessSpec, device: torch.device) -> torch.Tensor:
    """Fixed random pixels (PROBE_IMAGES, C, H, W) uint8, on which two networks are compared."""
    generator = torch.Generator().manual_seed(0)
    shape = (PROBE_IMAGES, 3, *spec.crop)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)


def own_images(dtype: torch.dtype) -> int:
    """How many of the user's images a proof in `dtype` is worth."""
    return FEW if dtype == torch.float32 else ENOUGH


def least_cosine(dtype: torch.dtype) -> float:
    """How close a network that computes in `dtype` must be to the unmerged model in float32."""
    return 0.9999 if dtype == torch.float32 else 0.999


def run_as_it_will(encoder: ImageEncoder, pixels_NCHW: torch.Tensor, compute: Compute) -> torch.Tensor:
    """What a prepared encoder makes of images, (M, D): they are repeated to fill batches of the batch's shape.

    A CPU takes a batch in chunks: a whole one and the batch's last, shorter one are all the shapes that it will meet.
    """
    size = compute.batch_size
    if compute.device.type == "cpu":
        size = min(size, CHUNK + size % CHUNK)
    size = max(size, PROBE_IMAGES)
    of_M = torch.arange(-(-len(pixels_NCHW) // size) * size) % len(pixels_NCHW)
    # made as a batch is, outside inference mode: torch.compile would compile anew for the other kind of tensor
    batches = [pixels_NCHW[of_B].to(compute.device) for of_B in of_M.split(size)]
    with torch.inference_mode():
        return torch.cat([encoder(pixels_BCHW) for pixels_BCHW in batches])


def lowest_cosine(expected_ND: torch.Tensor, found_MD: torch.Tensor, which: slice = ALL) -> float:
    """The lowest cosine to what was expected of `which` of N images, which are repeated; NaN where one is NaN."""
    of_M = torch.arange(len(found_MD)) % len(expected_ND)
    cosine_M = functional.cosine_similarity(expected_ND.float()[of_M.to(expected_ND.device)], found_MD.float())
    of_those = torch.isin(of_M, torch.arange(len(expected_ND))[which])
    return float(cosine_M[of_those.to(cosine_M.device)].min())


def prove(pixels_NCHW: torch.Tensor, expected_ND: torch.Tensor, found_MD: torch.Tensor, reference: str) -> Proof | None:
    """The proof of all images but the probe, which comes first; None where there are no others."""
    own = slice(PROBE_IMAGES, len(pixels_NCHW))
    if not (images := len(pixels_NCHW) - PROBE_IMAGES):
        return None
    return Proof(images, reference, *lowest_cosines(pixels_NCHW, expected_ND, found_MD, own))


def lowest_cosines(
    pixels_NCHW: torch.Tensor, expected_ND: torch.Tensor, found_MD: torch.Tensor, which: slice = ALL
) -> tuple[float, float | None]:
    """The same as they are, and after the mean of those images' embeddings is taken off.

    None for the latter where fewer than ENOUGH of the images differ.
    """
    mean_D = expected_ND[which].float().mean(dim=0)
    enough = len(torch.unique(pixels_NCHW[which].flatten(1), dim=0)) >= ENOUGH
    centred = lowest_cosine(expected_ND.float() - mean_D, found_MD.float() - mean_D, which) if enough else None
    return lowest_cosine(expected_ND, found_MD, which), centred
