"""Image bytes to uint8 pixels, by the preprocessing spec that the checkpoint came with.

The same steps as transformers' image processors (resize, crop the centre), on libjpeg-turbo and torch's uint8
antialiased resize; Pillow decodes everything that is not an ordinary JPEG. Normalisation is the model's.
"""

from __future__ import annotations

import io
import re
import warnings
from functools import cache

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError
from torch.nn import functional

from lora_clip.pixels.progressive import coarse
from lora_clip.types import PreprocessSpec

MAX_PIXELS = 2 * 89_478_485
"""Larger images are refused before decoding, as Pillow refuses them (DecompressionBombError)."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "ICO", "AVIF", "HEIF", "JXL", "TGA")
"""What Pillow may open, where it can. Not EPS: Pillow would run Ghostscript on it, whatever the file's name."""

MOST_WORDS = 300

EXIF, UPRIGHT = "exif", 1
TURNS = {
    1: (False, 1, 1),
    2: (False, 1, -1),
    3: (False, -1, -1),
    4: (False, -1, 1),
    5: (True, 1, 1),
    6: (True, 1, -1),
    7: (True, -1, -1),
    8: (True, -1, 1),
}
"""What turns an image upright, by its EXIF orientation: rows and columns exchanged or not, then the step of each."""
TRANSPOSED = {turn for turn, (transposed, _, _) in TURNS.items() if transposed}
EXIF_WITHIN = 1 << 20
"""In the first so many bytes of a JPEG its EXIF block is looked for: segments before it have 64 KiB at most each."""

BY_TORCH = ("bilinear", "bicubic")
BY_PILLOW = {name: Image.Resampling[name.upper()] for name in ("nearest", "lanczos", "box", "hamming")}
"""Filters that torch's resize does not have, or has otherwise."""

EXACT, FAST = DECODINGS = ("exact", "fast")
GPU = "gpu"
"""Ordinary JPEGs on the device (on_device.py); what is decoded on the CPU all the same is decoded as for `exact`."""
OVERSAMPLING = 2
"""How many pixels a scaled decode leaves, along an edge, for one of the resized image."""


QUARTER = 4
"""From so many times what is enough on, libjpeg decodes at a quarter of the size or less."""


class ImageError(ValueError):
    """An image that cannot become pixels, with the reason; it costs one reject."""


def prepare(data: bytes, spec: PreprocessSpec, out_CHW: torch.Tensor, decoding: str = EXACT) -> tuple[int, int]:
    """Image bytes into their place in a batch, uint8 (C, crop height, crop width); returns the image's (height, width).

    With `fast` a JPEG much larger than the model's input is decoded at a part of its size, which libjpeg does by
    transforming fewer coefficients of each block; of a progressive one those are not read either. Raises ImageError.
    """
    least = enough(spec.resize) if decoding == FAST else (0, 0)
    turn = orientation(data) if spec.orientation == EXIF else UPRIGHT
    pixels_HWC, size = _decode(data, least[::-1] if turn in TRANSPOSED else least)
    size = size[::-1] if turn in TRANSPOSED else size
    fit(torch.from_numpy(upright(pixels_HWC, turn)), spec, out_CHW, size)
    return size


def orientation(data: bytes) -> int:
    """The EXIF orientation of an image file, 1 to 8; 1 where there is none, or none that can be read.

    Read from the file's header alone, by Pillow, which decodes nothing for it.
    """
    if data[:2] == b"\xff\xd8" and b"Exif\0\0" not in data[:EXIF_WITHIN]:
        return UPRIGHT
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=_formats()) as image:
                # Pillow turns a TIFF upright by itself, as it decodes it
                found = UPRIGHT if image.format == "TIFF" else image.getexif().get(0x0112)
        except Exception:  # what is wrong with the file is said when it is decoded
            return UPRIGHT
    return found if isinstance(found, int) and found in TURNS else UPRIGHT


def upright(pixels_HWC: np.ndarray, turn: int) -> np.ndarray:
    """Pixels turned and mirrored by their EXIF orientation, as Pillow's exif_transpose does."""
    if turn == UPRIGHT:
        return pixels_HWC
    transposed, down, across = TURNS[turn]
    turned = pixels_HWC.swapaxes(0, 1) if transposed else pixels_HWC
    return np.ascontiguousarray(turned[::down, ::across])


def enough(resize: int | tuple[int, int] | None) -> tuple[int, int]:
    """The (height, width) from which on more pixels change the resized image very little; (0, 0): all are wanted."""
    if resize is None:
        return 0, 0
    height, width = resize if isinstance(resize, tuple) else (resize, resize)
    return OVERSAMPLING * height, OVERSAMPLING * width


def decode(data: bytes, least: tuple[int, int] = (0, 0)) -> torch.Tensor:
    """Image bytes as RGB pixels (H, W, C) uint8 of the image's own size; an animation's first frame.

    With `least`, a (height, width), a larger JPEG is decoded at a part of its size, but not below that.
    Raises ImageError for bytes that are empty, truncated, not an image, or larger than MAX_PIXELS.
    """
    return torch.from_numpy(_decode(data, least)[0])


def _decode(data: bytes, least: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """The pixels, and the image's own (height, width); of a JPEG maybe fewer pixels, but not fewer than `least`."""
    if not data:
        raise ImageError("empty file")
    if data[:2] == b"\xff\xd8" and (decoded := _decode_jpeg(data, least)) is not None:
        return decoded
    pixels_HWC = _decode_any(data)
    return pixels_HWC, (pixels_HWC.shape[0], pixels_HWC.shape[1])


def _decode_jpeg(data: bytes, least: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]] | None:
    """An ordinary JPEG's pixels and size, or None where Pillow should try: CMYK, damaged, unusual."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace not in ("YCbCr", "Gray", "RGB") or height * width > MAX_PIXELS:
            return None
        scaled = {"min_height": least[0], "min_width": least[1], "min_factor": 2} if any(least) else {}
        if scaled and height >= QUARTER * least[0] and width >= QUARTER * least[1]:
            data = coarse(data)
        return simplejpeg.decode_jpeg(data, "RGB", **scaled), (height, width)
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


def fit(
    pixels_HWC: torch.Tensor, spec: PreprocessSpec, out_CHW: torch.Tensor, own: tuple[int, int] | None = None
) -> None:
    """Resize and crop one image into its place in a batch: (H, W, C) uint8 to (C, crop height, crop width) uint8.

    `own` is the image's own (height, width) where it was not decoded at that size. Raises ImageError where the resized
    image, of an extreme aspect ratio, would exceed MAX_PIXELS.
    """
    pixels_1CHW = pixels_HWC.permute(2, 0, 1)[None]
    height, width = own or (pixels_HWC.shape[0], pixels_HWC.shape[1])
    size = resized_size(height, width, spec)
    if size != (pixels_HWC.shape[0], pixels_HWC.shape[1]):
        pixels_1CHW = _resize(pixels_HWC, size, spec.interpolation)
    crop_centre(pixels_1CHW[0], spec, out_CHW)


def resized_size(height: int, width: int, spec: PreprocessSpec) -> tuple[int, int]:
    """The (height, width) of an image after resizing. Raises ImageError where that exceeds MAX_PIXELS."""
    size = _longest_size(height, width, spec) if spec.longest else _target_size(height, width, spec.resize)
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError(f"{width}x{height} pixels would be resized to {size[1]}x{size[0]}")
    return size


def _resize(pixels_HWC: torch.Tensor, size: tuple[int, int], interpolation: str) -> torch.Tensor:
    """Pixels (1, C, height, width) uint8 of another size, antialiased."""
    if interpolation in BY_TORCH:
        # the batch's axis first: torch then knows the pixels for channels-last, and resizes them as they lie
        pixels_1CHW = pixels_HWC[None].permute(0, 3, 1, 2)
        return functional.interpolate(pixels_1CHW, size, mode=interpolation, antialias=True)
    resized = Image.fromarray(pixels_HWC.numpy()).resize(size[::-1], BY_PILLOW[interpolation])
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None]


def _target_size(height: int, width: int, resize: int | tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) after resizing; the long side is rounded down, as transformers' own resizing does."""
    if resize is None:
        return height, width
    if isinstance(resize, tuple):
        return resize
    if height <= width:
        return resize, int(resize * width / height)
    return int(resize * height / width), resize


def _longest_size(height: int, width: int, spec: PreprocessSpec) -> tuple[int, int]:
    """(height, width) within the crop, rounded as open_clip does."""
    ratio = max(height / spec.crop[0], width / spec.crop[1])
    return max(1, round(height / ratio)), max(1, round(width / ratio))


def crop_centre(pixels_CHW: torch.Tensor, spec: PreprocessSpec, out_CHW: torch.Tensor) -> None:
    """The centre of the image; where the crop is larger than the image, black fills the rest."""
    place = _as_torchvision if spec.centre == "round" else _as_transformers
    (from_top, to_top, rows), (from_left, to_left, columns) = map(place, pixels_CHW.shape[1:], spec.crop)
    source = pixels_CHW[:, from_top : from_top + rows, from_left : from_left + columns]
    if source.shape != out_CHW.shape:
        out_CHW.zero_()
    out_CHW[:, to_top : to_top + rows, to_left : to_left + columns] = source


def _as_transformers(size: int, crop: int) -> tuple[int, int, int]:
    """Along an edge: where what is kept begins in the image, where in the crop, and how long it is."""
    start = (size - crop) // 2
    return (start, 0, crop) if size >= crop else (0, -start, size)


def _as_torchvision(size: int, crop: int) -> tuple[int, int, int]:
    """The same where half a pixel is rounded to the even one."""
    return (round((size - crop) / 2), 0, crop) if size >= crop else (0, (crop - size) // 2, size)
