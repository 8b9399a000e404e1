"""JPEGs decoded by the GPU as `data.decode=gpu` does, with and without the resize and crop that a model needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from lora_clip.benchmark.gpu import material
from lora_clip.benchmark.gpu.findings import Figure, Findings, UnavailableError
from lora_clip.benchmark.gpu.sizes import Settings
from lora_clip.benchmark.gpu.timing import seconds_a_call
from lora_clip.extras import installed
from lora_clip.models.base import find_family
from lora_clip.pixels.decode import UPRIGHT, decode
from lora_clip.pixels.nvjpeg import open_decoder
from lora_clip.pixels.on_device import DeviceDecoder, fit_on_device
from lora_clip.types import PreprocessSpec

COMPARED = 100


def measure(settings: Settings, findings: Findings) -> None:
    """Tell images/s in batches, and how far the pixels are from libjpeg's. Raises UnavailableError."""
    decoder = _decoder(settings)
    base, _ = material.model(settings, settings.sizes.small)
    spec = find_family(base).load_spec(base)
    photographs = material.photographs(settings, settings.sizes.photographs)
    findings.attempt(partial(_distance, decoder, photographs[:COMPARED]), pixels="distance to exact")
    for batch in (settings.sizes.batches[0], 64):
        encoded = [_bytes(photographs[number % len(photographs)]) for number in range(batch)]
        for what, work in (("decode", decoder.decode), ("decode, resize, crop", partial(_pixels, decoder, spec))):
            findings.attempt(partial(_figure, settings, partial(work, encoded), batch), pixels=what, batch=batch)


def _decoder(settings: Settings) -> DeviceDecoder:
    if not torch.cuda.is_available():
        raise UnavailableError("no CUDA")
    if not installed("torchvision"):
        raise UnavailableError("no torchvision")
    return open_decoder(settings.device)


def _bytes(photograph: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(photograph), dtype=torch.uint8)


def _figure(settings: Settings, work: Callable[[], object], batch: int) -> Figure:
    seconds = seconds_a_call(work, settings.device, settings.sizes.seconds)
    return Figure(round(batch / seconds, 1), "images/s", f"{1e3 * seconds:.1f} ms a batch")


def _pixels(decoder: DeviceDecoder, spec: PreprocessSpec, encoded: Sequence[torch.Tensor]) -> torch.Tensor:
    """A batch of model input, uint8 (B, C, H, W)."""
    pixels_BCHW = torch.empty((len(encoded), 3, *spec.crop), dtype=torch.uint8, device=decoder.device)
    for decoded_CHW, out_CHW in zip(decoder.decode(encoded), pixels_BCHW, strict=True):
        fit_on_device(decoded_CHW, UPRIGHT, spec, out_CHW)
    return pixels_BCHW


def _distance(decoder: DeviceDecoder, photographs: Sequence[bytes]) -> Figure:
    """By how much a pixel differs from what the CPU decodes."""
    found = decoder.decode([_bytes(one) for one in photographs])
    pairs = zip(found, photographs, strict=True)
    apart = torch.cat([(one.cpu().permute(1, 2, 0).int() - decode(data).int()).abs().flatten() for one, data in pairs])
    note = f"at most {int(apart.max())}, {len(found)} photographs"
    return Figure(round(float(apart.float().mean()), 4), "of 255", note)
