"""jpeg: which files a decoder of ordinary JPEGs is given, told by their headers alone."""

from __future__ import annotations

import pytest
from PIL import Image

from helpers.images import encode, jpeg, photo, png
from lora_clip.pixels.jpeg import ordinary_size

PHOTO = photo(40, 24)


def with_thumbnail() -> bytes:
    """A JPEG whose EXIF block holds a JPEG, which has its own end."""
    small = jpeg(8, 8)
    exif = b"Exif\0\0" + small
    whole = jpeg(40, 24)
    return whole[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2) + exif + whole[2:]


ORDINARY = {
    "ordinary": jpeg(40, 24),
    "grey": encode(PHOTO.convert("L"), "JPEG"),
    "4:4:4": encode(PHOTO, "JPEG", subsampling=0),
    "4:2:2": encode(PHOTO, "JPEG", subsampling=1),
    "4:2:0": encode(PHOTO, "JPEG", subsampling=2),
    "its own tables": encode(PHOTO, "JPEG", optimize=True),
    "restart markers": encode(PHOTO, "JPEG", restart_marker_rows=1),
    "bytes behind its end": jpeg(40, 24) + b"more",
    "filled before a marker": jpeg(40, 24)[:2] + b"\xff\xff" + jpeg(40, 24)[2:],
    "a thumbnail": with_thumbnail(),
}
OTHERS = {
    "nothing": b"",
    "two bytes": b"\xff\xd8",
    "a PNG": png(),
    "progressive": encode(PHOTO, "JPEG", progressive=True),
    "CMYK": encode(PHOTO.convert("CMYK"), "JPEG"),
    "RGB": encode(PHOTO, "JPEG", keep_rgb=True),
    "truncated": jpeg(40, 24)[:-40],
    "truncated behind a thumbnail": with_thumbnail()[:-40],
    "truncated in its header": jpeg(40, 24)[:200],
    "not a JPEG inside": b"\xff\xd8" + b"no such thing" * 10,
    "no height": jpeg(40, 24).replace(b"\xff\xc0\x00\x11\x08\x00\x18", b"\xff\xc0\x00\x11\x08\x00\x00"),
    "12 bits": jpeg(40, 24).replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
    "sampled 4:1": jpeg(40, 24).replace(b"\x01\x22\x00\x02\x11\x01", b"\x01\x41\x00\x02\x11\x01"),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_ones_are_told_with_their_size(name: str) -> None:
    assert ordinary_size(ORDINARY[name]) == (24, 40)


@pytest.mark.parametrize("name", OTHERS)
def test_all_others_are_left_to_the_cpu(name: str) -> None:
    assert OTHERS[name] not in ORDINARY.values()
    assert ordinary_size(OTHERS[name]) is None


def test_every_way_of_being_cut_is_told() -> None:
    whole = ORDINARY["restart markers"]
    assert not [stop for stop in range(len(whole)) if ordinary_size(whole[:stop]) is not None]


def test_pillow_agrees_on_the_size_of_large_ones() -> None:
    data = encode(Image.new("L", (9000, 3)), "JPEG")
    assert ordinary_size(data) == (3, 9000)
