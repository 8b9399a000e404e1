"""Image bytes to uint8 pixels, by the preprocessing spec that the checkpoint came with.

The same steps as transformers' CLIPImageProcessor (resize the shortest edge, crop the centre), on libjpeg-turbo and
torch's uint8 antialiased resize; Pillow decodes everything that is not an ordinary JPEG. Normalisation is the model's.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError
from torch.nn import functional

from lora_clip.errors import ModelError

MAX_PIXELS = 2 * 89_478_485
"""Larger images are refused before decoding, as Pillow refuses them (DecompressionBombError)."""

INTERPOLATION = {2: "bilinear", 3: "bicubic"}


class ImageError(ValueError):
    """An image that cannot become pixels, with the reason; it costs one reject."""


@dataclass(frozen=True)
class PreprocessSpec:
    """How pixels are made: resize (shortest edge, or height and width), centre crop, then (x * scale - mean) / std.

    Sizes in pixels; `resize` None leaves the size as it is. `interpolation` is `bilinear` or `bicubic`.
    """

    resize: int | tuple[int, int] | None
    crop: tuple[int, int]
    interpolation: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """The spec as plain JSON values, for the fingerprint."""
        return asdict(self)


def load_spec(checkpoint: Path) -> PreprocessSpec:
    """The preprocessing spec in a checkpoint's `preprocessor_config.json` (or transformers 5's `processor_config.json`).

    Raises ModelError where there is none, or where it asks for steps that CLIP's processor does not have.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (path := checkpoint / name).is_file():
            config = json.loads(path.read_text())
            return parse_spec(config.get("image_processor", config))
    raise ModelError(
        f"{checkpoint} has no preprocessor_config.json, so how its pixels are made is unknown: "
        "save the processor beside the model (CLIPImageProcessor.from_pretrained(...).save_pretrained(folder))"
    )


def parse_spec(config: Mapping[str, Any]) -> PreprocessSpec:
    """The spec that a CLIPImageProcessor configuration describes. Raises ModelError for one that is not understood."""
    resample = config.get("resample", 3)
    if resample not in INTERPOLATION:
        raise ModelError(f"preprocessor resample={resample} is not supported: 2 (bilinear) or 3 (bicubic) is expected")
    resize = _resize(config.get("size", 224)) if config.get("do_resize", True) else None
    if config.get("do_center_crop", True):
        crop = _height_width(config.get("crop_size", 224))
    elif isinstance(resize, tuple):
        crop = resize
    else:
        raise ModelError("the preprocessor neither crops nor resizes to one size, so images have no common shape")
    scale = float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0
    normalise = config.get("do_normalize", True)
    mean = tuple(config["image_mean"]) if normalise else (0.0, 0.0, 0.0)
    std = tuple(config["image_std"]) if normalise else (1.0, 1.0, 1.0)
    return PreprocessSpec(resize, crop, INTERPOLATION[resample], scale, mean, std)


def _resize(size: Any) -> int | tuple[int, int]:
    if isinstance(size, int):
        return size
    if "shortest_edge" in size:
        return int(size["shortest_edge"])
    return _height_width(size)


def _height_width(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size["height"]), int(size["width"]))


def decode(data: bytes) -> torch.Tensor:
    """Image bytes as RGB pixels (H, W, C) uint8 of the image's own size; an animation's first frame.

    Raises ImageError for bytes that are empty, truncated, not an image, or larger than MAX_PIXELS.
    """
    if not data:
        raise ImageError("empty file")
    if data[:2] == b"\xff\xd8" and (pixels := _decode_jpeg(data)) is not None:
        return torch.from_numpy(pixels)
    return torch.from_numpy(_decode_any(data))


def _decode_jpeg(data: bytes) -> np.ndarray | None:
    """An ordinary JPEG's pixels, or None where Pillow should try: CMYK, damaged, unusual."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace not in ("YCbCr", "Gray", "RGB") or height * width > MAX_PIXELS:
            return None
        return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        return None


def _decode_any(data: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ImageError(f"{image.width}x{image.height} pixels are more than the {MAX_PIXELS} allowed")
                return np.array(image.convert("RGB"))
        except ImageError:
            raise
        except UnidentifiedImageError as error:
            raise ImageError("not an image, or of a format that Pillow does not know") from error
        except Image.DecompressionBombError as error:
            raise ImageError(f"decompression bomb: {error}") from error
        except Exception as error:  # a decoder meets hostile bytes here, and every failure is this one image's
            raise ImageError(f"{type(error).__name__}: {error}") from error


def fit(pixels_HWC: torch.Tensor, spec: PreprocessSpec, out_CHW: torch.Tensor) -> None:
    """Resize and crop one image into its place in a batch: (H, W, C) uint8 to (C, crop height, crop width) uint8.

    Raises ImageError where the resized image, of an extreme aspect ratio, would exceed MAX_PIXELS.
    """
    pixels_1CHW = pixels_HWC.permute(2, 0, 1)[None]
    size = _target_size(pixels_HWC.shape[0], pixels_HWC.shape[1], spec.resize)
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError(f"{pixels_HWC.shape[1]}x{pixels_HWC.shape[0]} pixels would be resized to {size[1]}x{size[0]}")
    if size != (pixels_HWC.shape[0], pixels_HWC.shape[1]):
        pixels_1CHW = functional.interpolate(pixels_1CHW, size, mode=spec.interpolation, antialias=True)
    _crop(pixels_1CHW[0], spec.crop, out_CHW)


def _target_size(height: int, width: int, resize: int | tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) after resizing; the long side is truncated, as transformers' get_resize_output_image_size does."""
    if resize is None:
        return height, width
    if isinstance(resize, tuple):
        return resize
    if height <= width:
        return resize, int(resize * width / height)
    return int(resize * height / width), resize


def _crop(pixels_CHW: torch.Tensor, crop: tuple[int, int], out_CHW: torch.Tensor) -> None:
    """The centre of the image; where the crop is larger than the image, black fills the rest."""
    height, width = pixels_CHW.shape[1:]
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    if top >= 0 and left >= 0:
        out_CHW.copy_(pixels_CHW[:, top : top + crop[0], left : left + crop[1]])
        return
    out_CHW.zero_()
    rows, columns = slice(max(0, top), top + crop[0]), slice(max(0, left), left + crop[1])
    source = pixels_CHW[:, rows, columns]
    at_top, at_left = _pad(height, crop[0]), _pad(width, crop[1])
    out_CHW[:, at_top : at_top + source.shape[1], at_left : at_left + source.shape[2]] = source


def _pad(size: int, crop: int) -> int:
    return max(0, -((size - crop) // 2)) if size < crop else 0
