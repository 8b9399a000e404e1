"""What is seen of rejected images: what is there of a JPEG that was cut off, and nothing of what is none."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from helpers.images import encode, jpeg, photo
from lora_clip.inspection.rejects import PIXELS, general, in_part


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", jpeg()[:30], b"%!PS-Adobe\n%%BoundingBox: 0 0 9 9\n", b"\x89PNG" + bytes(50)]
)
def test_bytes_of_which_nothing_is_seen_are_not_shown(data: bytes) -> None:
    assert in_part(data) is None


def test_of_a_cut_jpeg_the_upper_part_is_seen() -> None:
    shown = in_part(encode(photo(600, 400), "JPEG")[:20_000])
    assert shown is not None and max(Image.open(io.BytesIO(shown)).size) == PIXELS


def test_one_cause_is_one_reason_whatever_its_figures() -> None:
    assert general("5 of 900 bytes are missing") == general("77 of 12,345 bytes are missing")
    assert general("truncated (1 bytes not processed)") == "truncated (… bytes not processed)"
    assert general("it begins with b'<a b=\\'c'") == general('it begins with b"it\'s"') == "it begins with …"
