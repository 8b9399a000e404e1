"""JPEGs decoded by the GPU (nvJPEG through torchvision), with and without the resize and crop that a model needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from lora_clip.benchmark.gpu import material
from lora_clip.benchmark.gpu.findings import Figure, Findings, UnavailableError
from lora_clip.benchmark.gpu.sizes import Settings
from lora_clip.benchmark.gpu.timing import seconds_a_call
from lora_clip.pixels.decode import decode

EDGE, COMPARED = 224, 100
Decoder = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]


def measure(settings: Settings, findings: Findings) -> None:
    """Tell images/s in batches, and how far the pixels are from libjpeg's. Raises UnavailableError."""
    decoder = _decoder(settings)
    photographs = material.photographs(settings, settings.sizes.photographs)
    findings.attempt(partial(_distance, decoder, photographs[:COMPARED]), pixels="distance to exact")
    for batch in (settings.sizes.batches[0], 64):
        encoded = [_bytes(photographs[number % len(photographs)]) for number in range(batch)]
        for what, work in (("decode", decoder), ("decode, resize, crop", partial(_pixels, decoder))):
            findings.attempt(partial(_figure, settings, partial(work, encoded), batch), pixels=what, batch=batch)


def _decoder(settings: Settings) -> Decoder:
    """Torchvision's nvJPEG over a batch."""
    if not torch.cuda.is_available():
        raise UnavailableError("no CUDA")
    try:
        vision: Any = import_module("torchvision.io")
    except ImportError:
        raise UnavailableError("no torchvision") from None
    device = settings.device
    return lambda encoded: vision.decode_jpeg(list(encoded), mode=vision.ImageReadMode.RGB, device=device)


def _bytes(photograph: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(photograph), dtype=torch.uint8)


def _figure(settings: Settings, work: Callable[[], object], batch: int) -> Figure:
    seconds = seconds_a_call(work, settings.device, settings.sizes.seconds)
    return Figure(round(batch / seconds, 1), "images/s", f"{1e3 * seconds:.1f} ms a batch")


def _pixels(decoder: Decoder, encoded: Sequence[torch.Tensor]) -> torch.Tensor:
    """A batch of model input, uint8 (B, C, EDGE, EDGE)."""
    return torch.stack([_fit(pixels_CHW) for pixels_CHW in decoder(encoded)])


def _fit(pixels_CHW: torch.Tensor) -> torch.Tensor:
    height, width = pixels_CHW.shape[1:]
    scale = EDGE / min(height, width)
    size = (max(EDGE, int(height * scale)), max(EDGE, int(width * scale)))
    # PyTorch resizes bytes on the CPU alone
    resized_1CHW = functional.interpolate(pixels_CHW[None].float(), size, mode="bicubic", antialias=True)
    top, left = ((edge - EDGE) // 2 for edge in size)
    return resized_1CHW[0, :, top : top + EDGE, left : left + EDGE].round_().clamp_(0, 255).byte()


def _distance(decoder: Decoder, photographs: Sequence[bytes]) -> Figure:
    """By how much a pixel differs from what the CPU decodes."""
    found = [pixels_CHW.cpu().permute(1, 2, 0).numpy() for pixels_CHW in decoder([_bytes(one) for one in photographs])]
    apart = [
        np.abs(pixels_HWC.astype(np.int16) - decode(one).numpy().astype(np.int16)).ravel()
        for pixels_HWC, one in zip(found, photographs, strict=True)
    ]
    whole = np.concatenate(apart)
    return Figure(round(float(whole.mean()), 4), "of 255", f"at most {int(whole.max())}, {len(found)} photographs")
