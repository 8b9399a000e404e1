"""NVIDIA's JPEG decoder, by way of torchvision: what decodes for `data.decode=gpu`.

Not yet measured on a GPU.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from lora_clip.errors import ConfigError
from lora_clip.extras import GPU, how_to_install, installed
from lora_clip.pixels.decode import BY_TORCH
from lora_clip.pixels.on_device import DeviceDecoder, RefusedError
from lora_clip.types import PreprocessSpec

WITHOUT = "data.decode=exact decodes on the CPU"


class NvJpeg:
    """Decodes on a CUDA device, on its JPEG engines where it has some (A100, H100), else in kernels."""

    def __init__(self, device: torch.device, torchvision_io: Any) -> None:
        self.device, self._io = device, torchvision_io

    def decode(self, jpegs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """RGB pixels (C, H, W) uint8 of whole files. Raises RefusedError; torch.OutOfMemoryError goes on its way."""
        # it writes from a stream of its own into memory that was freed on this one, where it may still be read
        torch.cuda.current_stream(self.device).synchronize()
        try:
            found: list[torch.Tensor] = self._io.decode_jpeg(
                list(jpegs), mode=self._io.ImageReadMode.RGB, device=self.device
            )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RefusedError(str(error)) from error
        return found


def require_nvjpeg(device: torch.device, spec: PreprocessSpec) -> None:
    """Raises ConfigError, before anything is read, where `data.decode=gpu` cannot be had for what is known so far."""
    if device.type != "cuda":
        raise ConfigError(f"data.decode=gpu needs a CUDA GPU, and this job runs on the device {device.type}: {WITHOUT}")
    if not installed("torchvision"):
        raise ConfigError(
            f"data.decode=gpu needs torchvision, which is not installed: type {how_to_install(GPU)}; {WITHOUT}"
        )
    if spec.interpolation not in BY_TORCH:
        raise ConfigError(
            f"data.decode=gpu resizes by {' or '.join(BY_TORCH)}, and this model's images are resized by "
            f"{spec.interpolation}: {WITHOUT}"
        )


def open_decoder(device: torch.device) -> DeviceDecoder:
    """The decoder on a device, once it has decoded something. Raises ConfigError where it cannot."""
    try:
        import torchvision.io

        decoder = NvJpeg(device, torchvision.io)
        decoder.decode([_trial()])
    except Exception as error:  # whatever an extension raises that was made for another torch, or without nvJPEG
        found = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
        raise ConfigError(
            f"data.decode=gpu: torchvision cannot decode a JPEG on {device} ({found}). It must be the one made for "
            f"this torch {torch.__version__}, with nvJPEG; {WITHOUT}"
        ) from error
    return decoder


def _trial() -> torch.Tensor:
    """A JPEG file, uint8 (bytes,)."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 120, 40)).save(file, "JPEG")
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
