"""Stages by which a test decides when a job goes on, however fast the machine is; `Gate` and `Meeting` type them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from lora_clip.types import RawSample

PAUSE = 0.02


def stage(samples: Iterator[RawSample]) -> Iterator[RawSample]:
    """The samples; of each worker only so many until the gate is open: the file that `GATE` names."""
    gate, let_through = Path(os.environ["GATE"]), int(os.environ["LET_THROUGH"])
    for number, sample in enumerate(samples):
        while number >= let_through and not gate.exists():
            time.sleep(PAUSE)
        yield sample


def together(samples: Iterator[RawSample]) -> Iterator[RawSample]:
    """The samples, once each of the job's ranks has taken some; they meet in the folder that `MEETING` names."""
    folder, ranks = Path(os.environ["MEETING"]), int(os.environ["RANKS"])
    for number, sample in enumerate(samples):
        if not number:
            (folder / os.environ.get("LOCAL_RANK", "0")).touch()
        while len(list(folder.iterdir())) < ranks:
            time.sleep(PAUSE)
        yield sample
