"""Image bytes to uint8 pixels, by the preprocessing spec that the checkpoint came with.

The same steps as transformers' CLIPImageProcessor (resize the shortest edge, crop the centre), on libjpeg-turbo and
torch's uint8 antialiased resize; Pillow decodes everything that is not an ordinary JPEG. Normalisation is the model's.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
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
STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}
OTHER_DEFAULTS: dict[str, Any] = {
    "do_resize": True,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}
CLIP_DEFAULTS: dict[str, Any] = OTHER_DEFAULTS | {
    "do_center_crop": True,
    "size": 224,
    "crop_size": 224,
    "resample": 3,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
"""What a configuration leaves unsaid: CLIPImageProcessor's own values; of other processors, what all have in common."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "ICO", "AVIF", "HEIF", "JXL", "TGA")
"""What Pillow may open, where it can. Not EPS: Pillow would run Ghostscript on it, whatever the file's name."""

MOST_WORDS = 300


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
    """The preprocessing spec in a checkpoint's `preprocessor_config.json`, or transformers 5's `processor_config.json`.

    Raises ModelError where there is none, or where it asks for steps that CLIP's processor does not have.
    """
    nested = _read_config(checkpoint / "processor_config.json").get("image_processor")
    config = nested or _read_config(checkpoint / "preprocessor_config.json")
    if not config:
        raise ModelError(
            f"{checkpoint} has no preprocessor_config.json, so how its pixels are made is unknown: "
            "save the processor beside the model (CLIPImageProcessor.from_pretrained(...).save_pretrained(folder))"
        )
    return parse_spec(config)


def _read_config(path: Path) -> dict[str, Any]:
    """The JSON object in a file, empty where there is no such file. Raises ModelError."""
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds no JSON object")
    return config


def parse_spec(config: Mapping[str, Any]) -> PreprocessSpec:
    """The spec that a CLIPImageProcessor configuration describes. Raises ModelError for one that is not understood."""
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "CLIP")
    given = {name: value for name, value in config.items() if value is not None}
    try:
        return _spec({**(CLIP_DEFAULTS if kind.startswith("CLIP") else OTHER_DEFAULTS), **given})
    except ModelError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"the preprocessor configuration is not clear ({type(error).__name__}: {error})") from error


def _spec(config: Mapping[str, Any]) -> PreprocessSpec:
    """The spec of a configuration in which every key has a value."""
    unknown = [name for name, value in config.items() if name.startswith("do_") and value and name not in STEPS]
    if unknown:
        raise ModelError(f"the preprocessor asks for {', '.join(unknown)}, which is not one of CLIP's steps")
    if (resample := config["resample"]) not in INTERPOLATION:
        raise ModelError(f"preprocessor resample={resample} is not supported: 2 (bilinear) or 3 (bicubic) is expected")
    resize = _resize(config["size"]) if config["do_resize"] else None
    crop = _height_width(config["crop_size"]) if config["do_center_crop"] else resize
    if not isinstance(crop, tuple):
        raise ModelError("the preprocessor neither crops nor resizes to one size, so images have no common shape")
    scale = float(config["rescale_factor"]) if config["do_rescale"] else 1.0
    mean = _per_channel(config["image_mean"]) if config["do_normalize"] else (0.0, 0.0, 0.0)
    std = _per_channel(config["image_std"]) if config["do_normalize"] else (1.0, 1.0, 1.0)
    return PreprocessSpec(resize, crop, INTERPOLATION[resample], scale, mean, std)


def _resize(size: Any) -> int | tuple[int, int]:
    if isinstance(size, int):
        return _positive(size)
    named = {name for name, value in size.items() if value is not None}
    return _positive(size["shortest_edge"]) if named == {"shortest_edge"} else _height_width(size)


def _height_width(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return _positive(size), _positive(size)
    if {name for name, value in size.items() if value is not None} != {"height", "width"}:
        raise ModelError(f"preprocessor size {dict(size)} is not supported: shortest_edge, or height and width")
    return _positive(size["height"]), _positive(size["width"])


def _positive(size: Any) -> int:
    if int(size) < 1:
        raise ModelError(f"preprocessor size {size} is not supported: 1 pixel or more is expected")
    return int(size)


def _per_channel(values: Any) -> tuple[float, ...]:
    if len(values) != 3:
        raise ModelError(f"preprocessor mean or std {values} is not supported: three numbers are expected")
    return tuple(float(value) for value in values)


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
            with Image.open(io.BytesIO(data), formats=_formats()) as image:
                _check_size(image.width, image.height)
                return np.array(image.convert("RGB"))
        except ImageError:
            raise
        except UnidentifiedImageError as error:
            raise ImageError(f"not an image of a format that is read; it begins with {data[:16]!r}") from error
        except Image.DecompressionBombError as error:
            raise ImageError(f"decompression bomb: {error}") from error
        except Exception as error:  # a decoder meets hostile bytes here, and every failure is this one image's
            raise ImageError(f"damaged image: {_words(error)}") from error


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width}x{height} pixels are more than the {MAX_PIXELS} allowed")
    if width < 1 or height < 1:
        raise ImageError(f"{width}x{height} pixels: there is nothing to see")


def _words(error: Exception) -> str:
    """What an error says, the same in every run: without the addresses of objects."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", f"{type(error).__name__}: {error}")[:MOST_WORDS]


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
    """(height, width) after resizing; the long side is rounded down, as transformers' own resizing does."""
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
