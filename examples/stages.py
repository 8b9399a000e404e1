"""Stages of one's own between reading and decoding: `data.stages=[stages:only_captioned,stages:lower_case]`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from lora_clip.types import RawSample


def only_captioned(samples: Iterator[RawSample]) -> Iterator[RawSample]:
    """Leave out images without a caption: each becomes a reject of stage `filter` with this reason."""
    for sample in samples:
        yield sample if "txt" in sample.extras else sample.leave_out("it has no caption")


def lower_case(samples: Iterator[RawSample]) -> Iterator[RawSample]:
    """Captions in lower case. `sample.image` could be replaced in the same way."""
    for sample in samples:
        texts = {name: text.lower() if name == "txt" else text for name, text in sample.extras.items()}
        yield replace(sample, extras=texts)
