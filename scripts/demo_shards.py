"""The shards of the embedded demo: film negatives of emoji as WebDataset tars."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import torch
from demo_emoji import Emoji, negative, render
from PIL import Image

SHARDS = 8
FORMATS: dict[str, dict[str, Any]] = {
    "jpg": {"format": "JPEG", "quality": 88, "optimize": True},
    "webp": {"format": "WEBP", "quality": 88, "method": 6},
    "png": {"format": "PNG", "optimize": True},
}
SIZES = ((96, 96), (96, 128), (112, 112), (128, 96), (80, 80), (72, 108))
"""Heights and widths in pixels, in turn."""


def write_shards(folder: Path, emoji: Emoji, numbers_N: torch.Tensor, generator: torch.Generator) -> None:
    """Write a negative of each of these emoji, with its name as caption, as `00000.tar`, `00001.tar`, …, in order."""
    folder.mkdir(parents=True)
    for shard, part in enumerate(numbers_N.tensor_split(SHARDS)):
        with tarfile.open(folder / f"{shard:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for row, number in enumerate(part.tolist()):
                add_sample(tar, f"{shard:05d}{row:04d}", photograph(emoji, number, row, generator), emoji, number)


def photograph(emoji: Emoji, number: int, row: int, generator: torch.Generator) -> Image.Image:
    """One negative, of a size of its own; one in 50 has a palette."""
    pixels_N3HW = negative(render(emoji.images_NRHW[number : number + 1], generator, SIZES[row % len(SIZES)]))
    pixels_HWC = (pixels_N3HW[0].permute(1, 2, 0) * 255).round().to(torch.uint8)
    image = Image.fromarray(pixels_HWC.numpy())
    return image.quantize(128) if row == 28 else image


def add_sample(tar: tarfile.TarFile, key: str, image: Image.Image, emoji: Emoji, number: int) -> None:
    """Picture, caption and metadata: mostly JPEG, some PNG and WebP."""
    row = int(key[-4:])
    extension = "webp" if row == 7 else "png" if row % 25 == 3 else "jpg"
    buffer = io.BytesIO()
    image.save(buffer, **FORMATS[extension])
    add_member(tar, f"{key}.{extension}", buffer.getvalue())
    add_member(tar, f"{key}.txt", emoji.names[number].encode())
    told = {"url": emoji.urls[number], "also": emoji.texts[number][1:]}
    add_member(tar, f"{key}.json", json.dumps(told).encode())


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add one file, with nothing in its header that changes from run to run."""
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = len(data), 0, 0o644
    tar.addfile(member, io.BytesIO(data))
