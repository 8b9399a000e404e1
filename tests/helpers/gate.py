"""A stage that lets a worker begin, and holds it until a test opens the gate: the file that `GATE` names."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from lora_clip.types import RawSample

LET_THROUGH = 25
"""So many images of each worker pass at once, so that each start of a job commits something."""


def stage(samples: Iterator[RawSample]) -> Iterator[RawSample]:
    """The samples; the most of them when the gate is open."""
    gate = Path(os.environ["GATE"])
    for number, sample in enumerate(samples):
        while number >= LET_THROUGH and not gate.exists():
            time.sleep(0.02)
        yield sample
