"""apart, hands: an image whose decoder dies or never comes back costs that image."""

from __future__ import annotations

import faulthandler
import mmap
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from helpers.images import jpeg
from helpers.loader import SPEC
from lora_clip.loading import apart
from lora_clip.loading.apart import DiedError, prepare_apart, run_apart
from lora_clip.loading.hands import REMEMBERED, Hands
from lora_clip.pixels.decode import ImageError, prepare
from lora_clip.types import WorkRange


def shared() -> torch.Tensor:
    """Zeros (C, H, W) in memory that forks share."""
    size = 3 * SPEC.crop[0] * SPEC.crop[1]
    return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8).view(3, *SPEC.crop)


def crash() -> None:
    faulthandler.disable()
    os.kill(os.getpid(), signal.SIGSEGV)


def test_the_pixels_are_those_of_this_process() -> None:
    out_CHW, expected_CHW = shared(), shared()
    assert prepare_apart(jpeg(40, 30), SPEC, out_CHW, "exact", 60) == prepare(jpeg(40, 30), SPEC, expected_CHW, "exact")
    assert torch.equal(out_CHW, expected_CHW) and out_CHW.any()


def test_what_is_no_image_says_so() -> None:
    with pytest.raises(ImageError, match="empty file"):
        prepare_apart(b"", SPEC, shared(), "exact", 60)


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda *_: crash(), r"the decoder crashed \(signal 11: Segmentation fault\)"),
        (lambda *_: os._exit(3), r"the decoder crashed \(exit status 3\)"),
        (lambda *_: time.sleep(60), r"the decoder took longer than 0\.2 s"),
    ],
    ids=["crash", "exit", "sleep"],
)
def test_a_decoder_that_dies_or_never_comes_back_is_a_reject(
    monkeypatch: pytest.MonkeyPatch, end: Callable[..., Any], message: str
) -> None:
    monkeypatch.setattr(apart, "prepare", end)
    with pytest.raises(ImageError, match=message):
        prepare_apart(jpeg(), SPEC, shared(), "exact", 0.2 if "longer" in message else 60)


def test_an_error_that_nobody_expected_is_told_and_long_ones_are_cut() -> None:
    def fail() -> dict[str, Any]:
        raise ZeroDivisionError("x" * 100_000)

    assert run_apart(fail, 60)["error"] == "x" * apart.MOST_TOLD
    with pytest.raises(DiedError):
        run_apart(lambda: os._exit(0), 60)


def test_hands_know_what_was_taken_last_and_what_is_decoded() -> None:
    hands = Hands(2)
    ranges = [WorkRange(0, start, start + 4) for start in range(0, 4 * REMEMBERED + 40, 4)]
    for work in ranges:
        hands.take(1, work)
    assert hands.taken() == ranges[-REMEMBERED:]
    hands.take(1, WorkRange(1, 0, 4))
    hands.drop(1)
    assert hands.taken() == ranges[-REMEMBERED:], "what was dropped is somebody else's"
    hands.begin(1, 0, 17)
    in_hand = hands.in_hand(1)
    assert in_hand is not None and in_hand[:2] == (0, 17) and in_hand.seconds < 60 and hands.in_hand(0) is None
    hands.end(1)
    assert hands.in_hand(1) is None
