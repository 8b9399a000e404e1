"""What tests are made of: small photograph-like images, tars, shards; nothing here is read from disk."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """An RGB picture with the look of a photograph: a gradient, soft blobs, a little grain."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    blobs = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    ramp = np.linspace(-40, 40, width, dtype=np.float32)[None, :, None]
    grain = rng.normal(0, 4, (height, width, 1)).astype(np.float32)
    return Image.fromarray(np.clip(blobs + ramp + grain, 0, 255).astype(np.uint8))


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    """The image as the bytes of a file: `encode(photo(8, 8), "PNG")`."""
    buffer = io.BytesIO()
    image.copy().save(buffer, form, **options)  # a copy, since Pillow leaves marks of one format that upset the next
    return buffer.getvalue()


def jpeg(width: int = 32, height: int = 24, seed: int = 0) -> bytes:
    """A photograph-like JPEG file."""
    return encode(photo(width, height, seed), "JPEG", quality=90)


def png(width: int = 32, height: int = 24, seed: int = 0) -> bytes:
    """A photograph-like PNG file."""
    return encode(photo(width, height, seed), "PNG")


def tar_bytes(members: Mapping[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of the members in the given order; `form` is tarfile's (PAX_FORMAT, GNU_FORMAT, USTAR_FORMAT)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    """Write `tar_bytes(members)` to `path`, whose folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(members, form))
    return path


def write_shards(folder: Path, sizes: list[int], width: int = 32, height: int = 24) -> list[Path]:
    """Tars 00000.tar, … with `sizes[i]` JPEGs each and a caption beside every one; keys go on over the shards."""
    paths, number = [], 0
    for index, size in enumerate(sizes):
        members: dict[str, bytes] = {}
        for _ in range(size):
            members[f"{number:06d}.jpg"] = jpeg(width, height, number)
            members[f"{number:06d}.txt"] = f"picture {number}".encode()
            number += 1
        paths.append(write_tar(folder / f"{index:05d}.tar", members))
    return paths
