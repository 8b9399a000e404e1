"""How large everything is that is measured: for a GPU, or small enough to try the command on any CPU."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Sizes:
    """Models by their names in benchmark/models.py, images in numbers, `seconds` that one figure is measured for.

    `batches` begins with the one that counts most. `square` is the edge of the large product; jobs are over `job` and
    `long_job` images with the small model, over `job` with the large one, `varied` with other settings, `checked` where
    bytes are compared. `batch_too_large` fits no device that has `left_bytes` of memory left.
    """

    small: str
    large: str
    photographs: int
    proven: int
    batches: tuple[int, ...]
    square: int
    seconds: float
    job: int
    long_job: int
    varied: int
    checked: int
    batch_too_large: int
    left_bytes: int = 3 << 30


FULL = Sizes(
    *("vit-b-32", "vit-l-14"), photographs=500, proven=32, batches=(256, 128, 512), square=8192, seconds=1.0,
    job=30_000, long_job=120_000, varied=15_000, checked=3_000, batch_too_large=16_384,
)  # fmt: skip
# Without a GPU memory has no end that a job would soon meet, but addresses do: more than 2^47 bytes of pixels.
TINY = Sizes(
    *("tiny-32", "tiny-14"), photographs=24, proven=16, batches=(8, 4), square=256, seconds=0.05,
    job=24, long_job=72, varied=24, checked=72, batch_too_large=10**9,
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What was asked for: where to `work`, small sizes or the full ones, and a model of the user's own to prove."""

    work: str
    tiny: bool = False
    base: str | None = None
    adapter: str | None = None

    @property
    def sizes(self) -> Sizes:
        """The sizes to measure with."""
        return TINY if self.tiny else FULL

    @property
    def folder(self) -> Path:
        """Where what is made is kept."""
        return Path(self.work)

    @property
    def device(self) -> torch.device:
        """The first GPU; the CPU where there is none."""
        import torch

        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")

    def to_json(self) -> str:
        """The settings for a process of their own."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """The settings that another process was given."""
        return cls(**json.loads(text))
