"""`model.compile=auto`: whether a job is one for which torch.compile pays. Not yet measured on a GPU."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

import torch

from lora_clip.extras import installed
from lora_clip.output.notes import RunNotes, describe

AUTO = "auto"
COMPILE_FROM = 4_000_000
"""Images of a job. Compiling takes some 20 s, and saves perhaps a tenth of the forward: that pays after 200 s, in which
a GPU embeds a million images with ViT-L/14 at 5,000/s, and four GPUs four. Whatever the number of ranks: the bytes must
not depend on it."""


def decide(
    asked: bool | str, device: torch.device, images: int, earlier: Sequence[RunNotes]
) -> tuple[bool, str | None]:
    """Whether to compile, and a line for the user where that was left to the program.

    `images` are those that are still to be embedded; `earlier` are runs into the same output, whose rows are to be
    like those that come.
    """
    if isinstance(asked, bool):
        return asked, None
    compiled, why = _decide(device, images, [one for one in earlier if one.device == describe(device)])
    return compiled, f"model.compile=auto: {'compiled' if compiled else 'not compiled'}, {why}"


def _decide(device: torch.device, images: int, earlier: Sequence[RunNotes]) -> tuple[bool, str]:
    if earlier:
        return earlier[-1].compile, "as the rows that are there"
    if device.type != "cuda":
        return False, "which is worth its start on a GPU only"
    if images < COMPILE_FROM:
        return False, f"which pays from {COMPILE_FROM:,} images on; {images:,} are to be embedded"
    if lacking := _lacking():
        return False, f"since {lacking} is not installed here"
    return True, f"which takes a while before the first batch, and pays from {COMPILE_FROM:,} images on"


def _lacking() -> str | None:
    """What torch.compile would need for a GPU, and does not find."""
    if not installed("triton"):
        return "triton"
    compilers = (os.environ.get("CC") or "", "cc", "gcc", "clang")
    return None if any(map(shutil.which, filter(None, compilers))) else "a C compiler"
