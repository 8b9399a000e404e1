"""What a file's name says: whether it is an image, its sample's key, its extension.

Keys keep their dots (`dir/a.v2.jpg` -> `dir/a.v2`), unlike WebDataset's own rule, which cuts at the first dot and so
would make `a.v1.jpg` and `a.v2.jpg` one sample.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

IMAGE_EXTENSIONS = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "dib", "tif", "tiff", "ppm", "pgm", "pbm", "pnm"}
    | {"jp2", "j2k", "jpx", "ico", "tga", "avif", "heic", "heif", "jxl"}
)
EXTRA_EXTENSIONS = frozenset({"txt", "json"})


class ImageName(NamedTuple):
    """An image's `key` (its path less the image extension) and its WebDataset `extension` (from the first dot on)."""

    key: str
    extension: str


def webdataset_extension(path: str) -> str:
    """Everything after the first dot of the file's name, lower case: `dir/000.seg.png` -> `seg.png`."""
    return path.rpartition("/")[2].partition(".")[2].lower()


def image_name(path: str, image_keys: Iterable[str] | None = None) -> ImageName | None:
    """The key and extension of an image member, or None for a member that is not one.

    With `image_keys` None, every name that ends in an image extension is an image; otherwise only those whose whole
    WebDataset extension is among `image_keys`.
    """
    extension = webdataset_extension(path)
    if image_keys is not None:
        return ImageName(path[: -len(extension) - 1], extension) if extension in image_keys else None
    stem, dot, suffix = path.rpartition(".")
    return ImageName(stem, extension) if dot and suffix.lower() in IMAGE_EXTENSIONS else None


def extra_name(path: str) -> tuple[str, str] | None:
    """(key, extension) of a caption or metadata file, or None: `dir/a.v2.txt` -> (`dir/a.v2`, `txt`)."""
    stem, dot, suffix = path.rpartition(".")
    return (stem, suffix.lower()) if dot and suffix.lower() in EXTRA_EXTENSIONS else None
