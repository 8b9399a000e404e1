"""Pictures of embedded images, taken from the input again: nobody keeps a second copy of the collection."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from PIL import Image

from lora_clip.errors import DataError
from lora_clip.output import provenance
from lora_clip.pixels.decode import OVERSAMPLING, ImageError, decode
from lora_clip.sources.base import Shard, parse_image_key, source_of
from lora_clip.sources.shard_list import ShardList, ShardsById
from lora_clip.types import RawSample, WorkRange

THUMBNAIL_QUALITY = 85
KEPT_PIXELS = 128
"""The side of the pictures that outputs of one job share."""

Small = dict[tuple[str, str, int], tuple[str, Image.Image]]
"""Small pictures with their keys, by the path and digest of their shard, and their position in it."""


@dataclass(frozen=True)
class Pictures:
    """The images of an output's input shards, each found by its identity (shard, position)."""

    shards: Mapping[int, Shard]
    image_keys: tuple[str, ...] | None
    small: Small | None = None

    @classmethod
    def of(cls, root: Path, small: Small | None = None) -> Self:
        """The pictures of the output in `root`; those of several outputs of one input can share `small` ones.

        Raises OutputError where it is none.
        """
        fingerprint = provenance.require_fingerprint(root)
        shards = map(Shard.from_json, provenance.read_inputs(root))
        return cls(ShardsById(ShardList(shards)), parse_image_key(fingerprint["image_key"]), small)

    def sample(self, shard: int, position: int) -> RawSample:
        """The image as it lies in the input. Raises DataError where it is not there any more."""
        if shard not in self.shards:
            raise DataError(f"shard {shard} is not in the input")
        found = self.shards[shard]
        for sample in source_of(found, self.image_keys).read(found, WorkRange(shard, position, position + 1)):
            return sample
        raise DataError(f"{found.path} has no image at position {position} any more")

    def image(self, shard: int, position: int, key: str | None = None) -> Image.Image:
        """The decoded image, RGB; with `key` only if the one that stands there still has that key.

        Raises DataError or ImageError.
        """
        found, image = self._read(shard, position, 0)
        _check_key(found, key)
        return image

    def _read(self, shard: int, position: int, least: int) -> tuple[str, Image.Image]:
        """The key and the pixels of what stands there, maybe fewer than it has, but not below `least` on a side."""
        sample = self.sample(shard, position)
        if sample.damage is not None:
            raise ImageError(sample.damage)
        return sample.key, Image.fromarray(decode(sample.image, (least, least)).numpy())

    def thumbnail(self, shard: int, position: int, pixels: int, key: str | None = None) -> bytes | None:
        """The image as a JPEG file of at most `pixels` a side, or None where there is none to be had."""
        with suppress(ImageError, DataError, OSError):
            found, image = self._reduced(shard, position, pixels)
            _check_key(found, key)
            return shrunk(image, pixels)
        return None

    def _reduced(self, shard: int, position: int, pixels: int) -> tuple[str, Image.Image]:
        """The key and the image with more pixels than are wanted; small ones are kept where outputs share them."""
        if self.small is None or pixels > KEPT_PIXELS or shard not in self.shards:
            return self._read(shard, position, OVERSAMPLING * pixels)
        place = self.shards[shard].path, self.shards[shard].digest, position
        if place not in self.small:
            key, image = self._read(shard, position, OVERSAMPLING * KEPT_PIXELS)
            image.thumbnail((KEPT_PIXELS, KEPT_PIXELS))
            self.small[place] = key, image
        return self.small[place]


def _check_key(found: str, key: str | None) -> None:
    if key is not None and found != key:
        raise DataError(f"{found} stands where {key} was when it was embedded")


def shrunk(image: Image.Image, pixels: int) -> bytes:
    """An RGB image as a JPEG file of at most `pixels` a side."""
    small = image.copy()
    small.thumbnail((pixels, pixels))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=THUMBNAIL_QUALITY)
    return file.getvalue()
