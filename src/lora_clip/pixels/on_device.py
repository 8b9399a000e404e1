"""Ordinary JPEGs decoded, resized and cropped on a device, a batch at a time: the seam, and what is the same for all.

What resizes uint8 on the CPU for `exact` has no kernel on a GPU, so here the same steps are taken in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch.nn import functional

from lora_clip.pixels.decode import BY_TORCH, TURNS, ImageError, crop_centre, resized_size
from lora_clip.types import PreprocessSpec

MOST_PIXELS = 1 << 26
"""Larger images are left to the CPU: in float32 one takes 12 bytes a pixel of the device's memory."""
MOST_AT_ONCE = 1 << 27
"""So many pixels, 3 bytes each, are decoded in one call, whatever the batch."""
MOST_SHRINKING = 64
"""Along an edge: CUDA's kernel keeps the weights of an output pixel in shared memory, which is 48 KiB."""


class RefusedError(Exception):
    """One of the JPEGs of a call cannot be decoded by this decoder; which one is not known."""


class DeviceDecoder(Protocol):
    """Decodes ordinary JPEGs on its `device`, many in a call."""

    @property
    def device(self) -> torch.device:
        """Where the pixels are when they are decoded."""
        ...

    def decode(self, jpegs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """RGB pixels (C, H, W) uint8 on the device of whole files, each uint8 (bytes,) on the CPU.

        The files may be overwritten once it returns. Raises RefusedError where one of them cannot be decoded.
        """
        ...


def decode_each(decoder: DeviceDecoder, jpegs: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
    """The pixels of each JPEG; None for those that are refused, which are found by halves."""
    try:
        return list(decoder.decode(jpegs))
    except RefusedError:
        if len(jpegs) == 1:
            return [None]
    middle = len(jpegs) // 2
    return [*decode_each(decoder, jpegs[:middle]), *decode_each(decoder, jpegs[middle:])]


def in_calls(pixels: Sequence[int], most: int = MOST_AT_ONCE) -> list[slice]:
    """Images of so many pixels, in order, in runs that are decoded at once."""
    calls, begin, held = [], 0, 0
    for number, one in enumerate(pixels):
        if held and held + one > most:
            calls.append(slice(begin, number))
            begin, held = number, 0
        held += one
    return [*calls, slice(begin, len(pixels))] if held else calls


def suits_device(height: int, width: int, spec: PreprocessSpec) -> bool:
    """Whether an image of this size, turned upright, is resized on a device; others are left to the CPU."""
    try:
        resized = resized_size(height, width, spec)
    except ImageError:
        return False
    shrinking = max(height / resized[0], width / resized[1])
    largest = max(height * width, resized[0] * resized[1], height * resized[1])
    return spec.interpolation in BY_TORCH and largest <= MOST_PIXELS and shrinking <= MOST_SHRINKING


def fit_on_device(pixels_CHW: torch.Tensor, turn: int, spec: PreprocessSpec, out_CHW: torch.Tensor) -> None:
    """Turn upright, resize and crop one image into its place in a batch, uint8, all on one device."""
    transposed, *steps = TURNS[turn]
    pixels_CHW = pixels_CHW.transpose(1, 2) if transposed else pixels_CHW
    pixels_CHW = pixels_CHW.flip([dim for dim, step in enumerate(steps, 1) if step < 0])
    height, width = pixels_CHW.shape[1:]
    size = resized_size(height, width, spec)
    if size != (height, width):
        pixels_CHW = _resize(pixels_CHW, size, spec.interpolation)
    crop_centre(pixels_CHW, spec, out_CHW)


def _resize(pixels_CHW: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    """Pixels (C, height, width) of another size, in two steps with whole numbers between, as the CPU's kernel does."""
    for between in ((pixels_CHW.shape[1], size[1]), size):
        resized_1CHW = functional.interpolate(pixels_CHW[None].float(), between, mode=mode, antialias=True)
        pixels_CHW = resized_1CHW[0].round_().clamp_(0, 255)
    return pixels_CHW.to(torch.uint8)
