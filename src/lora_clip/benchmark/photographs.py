"""The images that the loops measured beside the job read: where each lies in its tar."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from PIL import Image

T = TypeVar("T")


class Photograph(NamedTuple):
    """Where an image lies in a tar: what a path is to the report's loops."""

    tar: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Its bytes."""
        with Path(self.tar).open("rb") as file:
            return os.pread(file.fileno(), self.size, self.offset)

    def open(self) -> Image.Image:
        """The decoded image."""
        return Image.open(io.BytesIO(self.read())).convert("RGB")


def list_photographs(shards: Path, limit: int) -> list[Photograph]:
    """The first `limit` images of the tars of a folder, in order."""
    found: list[Photograph] = []
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path, "r:") as tar:
            found += (
                Photograph(str(path), member.offset_data, member.size) for member in tar if _is_image(member.name)
            )
        if len(found) >= limit:
            break
    return found[:limit]


def _is_image(name: str) -> bool:
    return name.lower().endswith((".jpg", ".jpeg", ".png", ".webp"))


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items, `size` at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))
