"""What was rejected, by reason, with pictures as far as they can be seen: for the terminal and for report.html."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image, ImageFile

from lora_clip.data.pixels import MAX_PIXELS
from lora_clip.errors import DataError
from lora_clip.pictures import Pictures, shrunk

EXAMPLES = 6
PIXELS = 112
SEEN_IN_PART = {b"\xff\xd8": "JPEG", b"\x89P": "PNG"}
"""Formats of which a part of a file is a part of the picture, by how their files begin."""


@dataclass
class Reason:
    """Why images were rejected, how many, and some of them; figures within a reason are taken together."""

    text: str
    count: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)


def collect(root: Path) -> list[Reason]:
    """The reasons of an output's rejects, most frequent first."""
    found: dict[str, Reason] = {}
    for path in sorted((root / "rejects").glob("*.parquet")):
        for reject in pq.read_table(path).to_pylist():
            text = f"{reject['stage']}: {general(reject['error'])}"
            reason = found.setdefault(text, Reason(text))
            reason.count += 1
            if len(reason.examples) < EXAMPLES:
                reason.examples.append(reject)
    return sorted(found.values(), key=lambda reason: -reason.count)


def general(error: str) -> str:
    """An error without its figures, so that one cause is one reason."""
    words = ("…" if any(letter.isdigit() for letter in word) else word for word in error.split())
    return " ".join(words)[:100]


def section(reasons: Iterable[Reason], pictures: Pictures) -> str:
    """The reasons as HTML, with some images of each."""
    parts = [
        f"<h3>{reason.count:,} × {html.escape(reason.text)}</h3><ul class=rejects>"
        f"{''.join(_example(reject, pictures) for reject in reason.examples)}</ul>"
        for reason in reasons
    ]
    return f"<h2>Rejected</h2>{''.join(parts)}" if parts else ""


def _example(reject: dict[str, Any], pictures: Pictures) -> str:
    key = html.escape(reject["key"] or f"position {reject['position']}")
    data = seen(reject, pictures)
    image = f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(data).decode()}">' if data else ""
    return f"<li>{image}<code>{key}</code></li>"


def seen(reject: dict[str, Any], pictures: Pictures) -> bytes | None:
    """A small JPEG of a rejected image, or of its upper part if no more is there; None where nothing is to be seen."""
    whole = pictures.thumbnail(reject["shard"], reject["position"], PIXELS)
    if whole is not None:
        return whole
    try:
        return in_part(pictures.sample(reject["shard"], reject["position"]).image)
    except (DataError, OSError):
        return None


def in_part(data: bytes) -> bytes | None:
    """What can be seen of a damaged JPEG or PNG file, as a small JPEG file."""
    form = SEEN_IN_PART.get(data[:2])
    if form is None:
        return None
    try:
        with Image.open(io.BytesIO(data), formats=(form,)) as header:
            if header.width * header.height > MAX_PIXELS:
                return None
        parser = ImageFile.Parser()
        parser.feed(data)
        image = parser.image
        return shrunk(image.convert("RGB"), PIXELS) if image is not None and image.getbbox() else None
    except Exception:  # a decoder meets hostile bytes here, and there is nothing to lose
        return None
