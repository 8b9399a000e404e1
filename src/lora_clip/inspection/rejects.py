"""What was rejected, by reason, and what can still be seen of it: for the terminal and for report.html."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from lora_clip.errors import DataError
from lora_clip.inspection.pictures import Pictures, shrunk
from lora_clip.pixels.decode import MAX_PIXELS

EXAMPLES = 6
PIXELS = 112
FIGURES = re.compile(r"""b'(?:\\.|[^'\\])*'|b"(?:\\.|[^"\\])*"|[^\s()]*\d[^\s()]*""")
"""What differs from file to file in what is said of them: bytes, and words with a digit in them."""
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"


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
    return " ".join(FIGURES.sub("…", error).split())[:100]


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
    """What can be seen of a JPEG file that was cut off, as a small JPEG file; None of anything else.

    libjpeg decodes what is there of a file that ends in time, and leaves the rest grey.
    """
    if not data.startswith(JPEG_START):
        return None
    try:
        with Image.open(io.BytesIO(data + JPEG_END), formats=("JPEG",)) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            shown = image.convert("RGB")
    except Exception:  # a decoder meets hostile bytes here, and there is nothing to lose
        return None
    ranges: Any = shown.getextrema()
    blank = all(low == high for low, high in ranges)
    return None if blank else shrunk(shown, PIXELS)
