"""progressive: what a decode at a quarter of the size does not show is left out, and nothing else."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.images import encode, jpeg, photo, png
from lora_clip.pixels.decode import ImageError, decode, prepare
from lora_clip.pixels.progressive import coarse
from lora_clip.types import PreprocessSpec

SPEC = PreprocessSpec(32, (32, 32), "bicubic", 1 / 255, (0.5,) * 3, (0.5,) * 3)


def progressive(width: int, height: int, seed: int = 0, **options: Any) -> bytes:
    noise_HW1 = np.random.default_rng(seed).normal(0, 9, (height, width, 1))
    noisy_HWC = (np.asarray(photo(width, height, seed)) + noise_HW1).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy_HWC).save(file, "JPEG", quality=90, progressive=True, **options)
    return file.getvalue()


def fast(data: bytes) -> torch.Tensor:
    out_CHW = torch.empty((3, 32, 32), dtype=torch.uint8)
    prepare(data, SPEC, out_CHW, "fast")
    return out_CHW.int()


@pytest.mark.parametrize(
    "options", [{}, {"subsampling": "4:4:4"}, {"subsampling": "4:2:2"}, {"restart_marker_rows": 1}]
)
def test_most_bytes_go_and_the_picture_stays(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    data = progressive(640, 480, **options)
    left = coarse(data)
    assert len(left) < len(data) / 3
    assert simplejpeg.decode_jpeg(left, "RGB", strict=True).shape == (480, 640, 3), "libjpeg has nothing to complain of"
    found_CHW = fast(data)
    monkeypatch.setattr("lora_clip.pixels.decode.coarse", lambda data: data)
    apart_CHW = (found_CHW - fast(data)).abs()
    assert 0 < apart_CHW.max() <= 8 and apart_CHW.float().mean() < 1


def test_the_mean_of_each_block_is_exact() -> None:
    data = progressive(640, 480, subsampling="4:4:4")
    eighths = [
        simplejpeg.decode_jpeg(one, "RGB", min_height=60, min_width=80, min_factor=8) for one in (data, coarse(data))
    ]
    assert eighths[0].shape == (60, 80, 3) and (eighths[0] == eighths[1]).all()


def test_grey_is_as_good() -> None:
    data = encode(photo(640, 480).convert("L"), "JPEG", progressive=True, quality=95)
    assert len(coarse(data)) < len(data)
    assert (fast(data) - fast(coarse(data))).abs().max() == 0, "once more takes nothing away"


@pytest.mark.parametrize(
    "data",
    [
        jpeg(640, 480), png(640, 480), b"", b"\xff\xd8", b"\xff\xd8\xff\xff\xff\xff", progressive(640, 480)[:-2],
        progressive(640, 480)[:5000], progressive(640, 480)[:30],
    ],
    ids=["baseline", "PNG", "empty", "start", "fill bytes", "without end", "cut", "header"],
)  # fmt: skip
def test_all_else_stays_as_it_is(data: bytes) -> None:
    assert coarse(data) is data


def test_where_more_than_a_quarter_is_wanted_all_of_it_is_read() -> None:
    data = progressive(255, 256)
    assert len(coarse(data)) < len(data)
    whole = simplejpeg.decode_jpeg(data, "RGB", min_height=64, min_width=64, min_factor=2)
    assert (decode(data, (64, 64)).numpy() == whole).all()


@settings(max_examples=150, deadline=None)
@given(at=st.integers(2, 40_000), value=st.binary(min_size=1, max_size=4), cut=st.integers(0, 3))
def test_damage_is_met_as_ever(at: int, value: bytes, cut: int) -> None:
    data = bytearray(WHOLE)
    at %= len(data)
    data[at : at + len(value)] = value
    if cut == 0:
        del data[at:]
    coarse(bytes(data))
    with contextlib.suppress(ImageError):
        fast(bytes(data))


WHOLE = progressive(400, 300)
