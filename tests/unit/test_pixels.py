"""pixels: what transformers' processor makes of an image, or a reason that a person understands."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from helpers.images import encode, jpeg, photo, png
from lora_clip.errors import ModelError
from lora_clip.models.preprocess import load_spec, parse_spec
from lora_clip.pixels.decode import BY_TORCH, ImageError, decode, enough, fit, prepare
from lora_clip.types import PreprocessSpec


def clip(size: Any = 224, crop: Any = 224, **more: Any) -> dict[str, Any]:
    return {"size": size, "crop_size": crop, **more}


def ours(data: bytes, config: dict[str, Any]) -> np.ndarray:
    spec = parse_spec(config)
    out_CHW = torch.full((3, *spec.crop), 77, dtype=torch.uint8)
    prepare(data, spec, out_CHW)
    return out_CHW.numpy()


def theirs(data: bytes, config: dict[str, Any]) -> np.ndarray:
    """What the PIL form of transformers' processor makes of the same file, before it rescales and normalises."""
    processor = CLIPImageProcessorPil(**{**config, "do_rescale": False, "do_normalize": False})
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(processor(image, return_tensors="np")["pixel_values"][0])


def difference(data: bytes, config: dict[str, Any]) -> tuple[int, float]:
    left, right = ours(data, config).astype(int), theirs(data, config).astype(int)
    assert left.shape == right.shape
    apart = np.abs(left - right)
    return int(apart.max()), float(apart.mean())


# --- parity ---

SIZES = [(1, 1), (1, 3), (7, 500), (500, 7), (224, 224), (223, 225), (225, 223), (640, 480), (480, 640), (335, 500)]


@pytest.mark.parametrize("size", [*SIZES, (2000, 1500)])
def test_pixels_are_those_of_transformers_processor(size: tuple[int, int]) -> None:
    for data in (jpeg(*size, seed=sum(size)), png(*size, seed=sum(size))):
        most, mean = difference(data, clip())
        assert most <= 2 and mean < 0.05
        if size[0] > 1000:
            break


@pytest.mark.parametrize(
    "config",
    [
        clip({"shortest_edge": 224}, {"height": 224, "width": 224}),
        clip({"shortest_edge": 256}, 224),
        clip({"height": 200, "width": 260}, do_center_crop=False),
        clip({"height": 240, "width": 100}, 96),
        clip(64, 64, resample=2),
        clip({"height": 32, "width": 48}, do_center_crop=False, resample=2),
        clip(do_resize=False),
        clip(64, {"height": 91, "width": 100}),
        clip(do_resize=False, crop=601),
    ],
)
@pytest.mark.parametrize("size", [(300, 200), (199, 301), (601, 600), (50, 41)])
def test_every_spec_gives_the_processors_pixels(config: dict[str, Any], size: tuple[int, int]) -> None:
    most, mean = difference(jpeg(*size, seed=1), config)
    assert most <= 2 and mean < 0.5
    if not config.get("do_resize", True):
        assert most == 0


def modes() -> dict[str, bytes]:
    """A file of every kind that must become a row."""
    image = photo(90, 60, 3)
    alpha = Image.fromarray(np.linspace(0, 255, 90 * 60, dtype=np.uint8).reshape(60, 90))
    rgba = image.copy()
    rgba.putalpha(alpha)
    palette = image.quantize(16)
    sixteen = Image.fromarray((np.arange(90 * 60, dtype=np.uint16) * 12).reshape(60, 90))
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "gray JPEG": encode(image.convert("L"), "JPEG"),
        "progressive JPEG": encode(image, "JPEG", progressive=True),
        "JPEG 4:4:4": encode(image, "JPEG", subsampling=0),
        "JPEG 4:2:2": encode(image, "JPEG", subsampling=1),
        "RGB JPEG": encode(image, "JPEG", keep_rgb=True),
        "CMYK JPEG": encode(image.convert("CMYK"), "JPEG"),
        "YCCK JPEG": ycck(image),
        "rotated JPEG": encode(image, "JPEG", exif=exif),
        "MPO": encode(image, "MPO", **frames()),
        "gray PNG": encode(image.convert("L"), "PNG"),
        "RGBA PNG": encode(rgba, "PNG"),
        "LA PNG": encode(rgba.convert("LA"), "PNG"),
        "palette PNG": encode(palette, "PNG"),
        "palette PNG, one colour transparent": encode(palette, "PNG", transparency=3),
        "palette PNG, transparency in bytes": encode(palette, "PNG", transparency=bytes(range(0, 256, 16))),
        "RGB PNG, one colour transparent": encode(image, "PNG", transparency=(1, 2, 3)),
        "1-bit PNG": encode(image.convert("1"), "PNG"),
        "16-bit PNG": encode(sixteen, "PNG"),
        "interlaced PNG": interlaced_png(),
        "APNG": encode(image, "PNG", **frames()),
        "GIF": encode(image, "GIF"),
        "animated GIF": encode(image, "GIF", **frames()),
        "WebP": encode(image, "WEBP"),
        "WebP with alpha": encode(rgba, "WEBP"),
        "animated WebP": encode(image, "WEBP", **frames()),
        "TIFF": encode(image, "TIFF"),
        "TIFF of pages": encode(image, "TIFF", **frames()),
        "TIFF, deflated": encode(image, "TIFF", compression="tiff_adobe_deflate"),
        "CMYK TIFF": encode(image.convert("CMYK"), "TIFF"),
        "float TIFF": encode(image.convert("F"), "TIFF"),
        "BMP": encode(image, "BMP"),
        "ICO": encode(image, "ICO", sizes=[(32, 32)]),
        "PPM": encode(image, "PPM"),
        "PGM": encode(image.convert("L"), "PPM"),
        "TGA": encode(image, "TGA"),
        "JPEG 2000": encode(image, "JPEG2000"),
    }


def frames() -> dict[str, Any]:
    return {"save_all": True, "append_images": [photo(90, 60, 4), photo(90, 60, 5)], "duration": 50}


def ycck(image: Image.Image) -> bytes:
    """A CMYK JPEG whose Adobe marker says that its first three channels are YCC."""
    data = encode(image.convert("CMYK"), "JPEG")
    at = data.index(b"Adobe") + 11
    return data[:at] + b"\2" + data[at + 1 :]


def interlaced_png() -> bytes:
    """An Adam7 PNG of 8 x 8 gray; Pillow writes none."""
    passes = [(1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4)]
    rows = b"".join((b"\0" + bytes(range(10, 10 + width))) * height for width, height in passes)
    return png_file(8, 8, rows, colour=0, interlace=1)


def png_file(width: int, height: int, rows: bytes, colour: int = 2, interlace: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, interlace)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


MODES = modes()


@pytest.mark.parametrize("kind", MODES)
def test_every_kind_of_image_is_what_pillow_makes_of_it(kind: str) -> None:
    with Image.open(io.BytesIO(MODES[kind])) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = np.asarray(image.convert("RGB"))
    pixels_HWC = decode(MODES[kind])
    assert pixels_HWC.dtype == torch.uint8 and pixels_HWC.is_contiguous()
    assert np.array_equal(pixels_HWC.numpy(), reference)


def test_the_kinds_are_what_their_names_say() -> None:
    """Pillow could write something else than was asked for, and every test above would still pass."""
    with Image.open(io.BytesIO(MODES["rotated JPEG"])) as image:
        assert image.getexif()[0x0112] == 6 and decode(MODES["rotated JPEG"]).shape == (60, 90, 3)
    for kind in ("APNG", "animated GIF", "animated WebP", "TIFF of pages", "MPO"):
        with Image.open(io.BytesIO(MODES[kind])) as image:
            assert getattr(image, "n_frames", 1) == 3, kind
    for kind, mode in (("16-bit PNG", "I;16"), ("1-bit PNG", "1"), ("LA PNG", "LA"), ("YCCK JPEG", "CMYK")):
        with Image.open(io.BytesIO(MODES[kind])) as image:
            assert image.mode == mode, kind
    assert b"Adobe" in MODES["CMYK JPEG"] and MODES["YCCK JPEG"] != MODES["CMYK JPEG"]


# --- fast ---


def both(data: bytes, config: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    spec = parse_spec(config)
    exact_CHW, fast_CHW = (torch.empty((3, *spec.crop), dtype=torch.uint8) for _ in range(2))
    assert prepare(data, spec, exact_CHW) == prepare(data, spec, fast_CHW, "fast"), "the image's own size, either way"
    return exact_CHW.numpy().astype(int), fast_CHW.numpy().astype(int)


@pytest.mark.parametrize("size", [(1200, 900), (4000, 3000), (901, 2047), (2047, 901)])
def test_a_scaled_decode_differs_but_little(size: tuple[int, int]) -> None:
    exact_CHW, fast_CHW = both(jpeg(*size, seed=1), clip())
    apart = np.abs(exact_CHW - fast_CHW)
    assert 0 < apart.max() <= 16 and apart.mean() < 1, "scaled, and of the same frame"


@pytest.mark.parametrize("data", [jpeg(500, 375), jpeg(895, 3000), png(1200, 900)], ids=["small", "narrow", "PNG"])
def test_what_is_not_large_is_decoded_exactly(data: bytes) -> None:
    exact_CHW, fast_CHW = both(data, clip(448, 448) if data[:2] == b"\xff\xd8" else clip())
    assert (exact_CHW == fast_CHW).all()


def test_large_is_measured_by_what_the_image_is_resized_to() -> None:
    assert (enough(224), enough((100, 200)), enough(None)) == ((448, 448), (200, 400), (0, 0))
    exact_CHW, fast_CHW = both(jpeg(1200, 900), clip({"height": 451, "width": 16}, do_center_crop=False))
    assert (exact_CHW == fast_CHW).all(), "a half would be 450 high"


# --- what is no image ---


def ppm(width: int, height: int) -> bytes:
    return b"P6 %d %d 255\n" % (width, height) + b"abc"


def huge_jpeg() -> bytes:
    data = bytearray(jpeg(16, 16))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 65_000, 65_000)
    return bytes(data)


def huge_gif() -> bytes:
    return b"GIF89a" + struct.pack("<HH", 65_000, 65_000) + encode(photo(9, 9), "GIF")[10:]


BROKEN = {
    "empty": (b"", "empty file"),
    "text": (b"this is not the image you are looking for", "not an image"),
    "HTML": (b"<!DOCTYPE html><html><body>404</body></html>", "<!DOCTYPE html>"),
    "zeros": (b"\0" * 5000, "not an image"),
    "JPEG cut in its header": (jpeg()[:20], "image"),
    "JPEG cut in its middle": (jpeg(200, 200)[:2000], "truncated"),
    "JPEG without its last bytes": (jpeg(200, 200)[:-40], "truncated"),
    "PNG cut in its header": (png()[:20], "image"),
    "PNG cut in its middle": (png(200, 200)[:2000], "truncated"),
    "GIF cut": (encode(photo(99, 99), "GIF")[:900], "truncated"),
    "WebP cut": (encode(photo(99, 99), "WEBP")[:300], "image"),
    "only JPEG's magic": (b"\xff\xd8\xff", "image"),
    "huge JPEG": (huge_jpeg(), "decompression bomb"),
    "huge PNG": (png_file(60_000, 60_000, b"\0"), "decompression bomb"),
    "huge GIF": (huge_gif(), "decompression bomb"),
    "huge PPM": (ppm(70_000, 70_000), "decompression bomb"),
    "PNG of no width": (png_file(0, 9, b"\0"), "image"),
    "PPM of no width": (ppm(0, 9), "image"),
    "EPS": (encode(photo(8, 8), "EPS"), "not an image"),
    "PDF": (b"%PDF-1.4 nothing", "not an image"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image"),
    "tar": (b"x.jpg".ljust(257, b"\0") + b"ustar".ljust(800, b"\0"), "not an image"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_image_is_an_image_error_that_says_why(kind: str) -> None:
    data, reason = BROKEN[kind]
    with pytest.raises(ImageError, match=reason) as caught:
        decode(data)
    assert "0x" not in str(caught.value) and len(str(caught.value)) < 400


IN_LITTLE_MEMORY = """
import pickle, resource, sys
from lora_clip.pixels.decode import ImageError, decode
decode(pickle.load(sys.stdin.buffer))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 40_000_000, used + 40_000_000))
for data in pickle.load(sys.stdin.buffer):
    try:
        decode(data)
    except ImageError as error:
        print(error)
"""


@pytest.mark.slow
def test_huge_images_are_refused_before_memory_is_used_and_nothing_is_printed() -> None:
    huge = [data for kind, (data, _) in BROKEN.items() if kind.startswith("huge")]
    given = pickle.dumps(MODES["palette PNG, transparency in bytes"]) + pickle.dumps(huge)
    command = [sys.executable, "-c", IN_LITTLE_MEMORY]
    done = subprocess.run(command, input=given, capture_output=True, check=True)
    assert [line[:18] for line in done.stdout.decode().splitlines()] == ["decompression bomb"] * len(huge)
    assert done.stderr == b""


def test_a_postscript_file_runs_nothing_whatever_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("a program was started"))
    with pytest.raises(ImageError):
        decode(encode(photo(8, 8), "EPS"))


def test_reasons_are_the_same_from_run_to_run() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "open", lambda file, formats: (_ for _ in ()).throw(OSError(f"cannot read {file!r}")))
        with pytest.raises(ImageError, match=r"<_io\.BytesIO object>"):
            decode(b"any")


@pytest.mark.parametrize("error", [SyntaxError("broken"), struct.error("short"), IndexError(), EOFError(), KeyError(7)])
def test_whatever_a_decoder_raises_is_this_one_images(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", lambda file, formats: (_ for _ in ()).throw(error))
    with pytest.raises(ImageError, match=type(error).__name__):
        decode(b"any")


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1)])
def test_an_extreme_aspect_ratio_is_refused_before_it_is_resized(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=r"would be resized to"):
        ours(png_file(*size, (b"\0" + b"abc" * size[0]) * size[1]), clip())


@pytest.mark.slow
def test_a_size_that_pillow_only_warns_of_is_a_row_without_a_warning() -> None:
    data = encode(Image.new("1", (10_000, 9_000)), "PNG")
    assert ours(data, clip(8, 8)).max() == 0


def settled(data: bytes) -> str | None:
    """Decode and fit; the reason where there is one. Anything else than an ImageError is a failure."""
    try:
        ours(data, clip(16, 16))
    except ImageError as error:
        return str(error)
    return None


def with_png_checksums(data: bytes) -> bytes:
    """The PNG with every chunk's checksum made right, so that damage gets past it to the decoder."""
    out, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunk = data[at + 4 : at + 8 + length]
        out += data[at : at + 4] + chunk + struct.pack(">I", zlib.crc32(chunk))
        at += 12 + length
    return bytes(out) + data[at:]


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(sorted(MODES)), st.randoms(use_true_random=False), st.integers(1, 12), st.booleans())
def test_damaged_bytes_are_a_row_or_an_image_error(kind: str, random: random.Random, flips: int, ends: bool) -> None:
    data = bytearray(MODES[kind])
    reach = min(len(data), random.choice([64, 700, len(data)]))
    for _ in range(flips):
        data[random.randrange(reach)] = random.choice([0, 1, 127, 128, 255, random.randrange(256)])
    if ends:
        del data[random.randrange(len(data)) :]
    elif kind.endswith("PNG") and data[:8] == MODES["1-bit PNG"][:8]:
        data[:] = with_png_checksums(bytes(data))
    reason = settled(bytes(data))
    assert reason is None or (reason and " at 0x" not in reason)
    assert settled(bytes(data)) == reason


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"II*\0", b"BM", b"P6\n", b"GIF89a", b"\0\0\1\0"]),
)
def test_any_bytes_are_a_row_or_an_image_error(data: bytes, magic: bytes) -> None:
    settled(magic + data)


# --- the specification ---


def test_transformers_4_and_5_files_give_the_same_spec(tmp_path: Path) -> None:
    processor = CLIPImageProcessorPil(size={"shortest_edge": 60}, crop_size={"height": 50, "width": 40}, resample=2)
    processor.save_pretrained(tmp_path / "4")
    config = json.loads((tmp_path / "4" / "preprocessor_config.json").read_text())
    spec = load_spec(tmp_path / "4")
    assert spec == PreprocessSpec(
        60, (50, 40), "bilinear", 1 / 255, tuple(processor.image_mean), tuple(processor.image_std)
    )
    write(tmp_path / "5" / "processor_config.json", {"image_processor": config, "processor_class": "CLIPProcessor"})
    assert load_spec(tmp_path / "5") == spec
    old = {"size": 60, "crop_size": 224, "feature_extractor_type": "CLIPFeatureExtractor", "resample": 3}
    write(tmp_path / "5" / "preprocessor_config.json", old)
    assert load_spec(tmp_path / "5") == spec, "the nested one is what transformers reads"
    write(tmp_path / "5" / "processor_config.json", {"processor_class": "CLIPProcessor"})
    assert load_spec(tmp_path / "5") == parse_spec(old)


def write(path: Path, config: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(config))


def test_what_a_configuration_leaves_unsaid_is_as_transformers_has_it() -> None:
    default = CLIPImageProcessorPil()
    spec = parse_spec({"image_processor_type": "CLIPImageProcessor", "size": None})
    assert (spec.resize, spec.crop, spec.interpolation) == (224, (224, 224), "bicubic")
    assert (spec.mean, spec.std, spec.scale) == (tuple(default.image_mean), tuple(default.image_std), 1 / 255)
    plain = parse_spec({"do_rescale": False, "do_normalize": False})
    assert (plain.scale, plain.mean, plain.std) == (1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_another_processor_does_not_get_clips_own_values() -> None:
    siglip = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 384, "width": 384}, "resample": 3}
    spec = parse_spec(siglip | {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]})
    assert (spec.resize, spec.crop) == ((384, 384), (384, 384))
    assert parse_spec(siglip) == spec, "SigLIP's own mean, not CLIP's"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"resample": 6}, "resample=6 .*1 .lanczos"),
        ({"image_processor_type": "LevitImageProcessor"}, "LevitImageProcessor, whose steps are not known here"),
        ({"image_processor_type": "Siglip2ImageProcessor"}, "naflex"),
        ({"do_center_crop": False}, "neither crops"),
        ({"size": {"longest_edge": 224}}, "longest_edge"),
        ({"size": {"shortest_edge": 224, "longest_edge": 300}}, "longest_edge"),
        ({"crop_size": {"shortest_edge": 224}}, "shortest_edge"),
        ({"size": "big"}, "not clear"),
        ({"size": 0}, "1 pixel or more"),
        ({"size": {"height": -1, "width": 3}}, "1 pixel or more"),
        ({"image_mean": [0.5]}, "three numbers"),
        ({"image_std": 0.5}, "not clear"),
        ({"do_pad": True}, "do_pad"),
    ],
)
def test_a_configuration_that_is_not_understood_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        parse_spec(config)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\0"])
def test_a_file_that_holds_no_configuration_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(ModelError, match=r"preprocessor_config\.json"):
        load_spec(tmp_path)


def test_a_checkpoint_without_a_processor_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="save_pretrained"):
        load_spec(tmp_path)


@pytest.mark.parametrize("interpolation", BY_TORCH)
@pytest.mark.parametrize("size", [(1, 1), (17, 31), (300, 225), (225, 400), (900, 37)])
def test_pixels_are_resized_as_they_lie_to_the_bytes_that_planes_give(
    size: tuple[int, int], interpolation: str
) -> None:
    spec = parse_spec(clip(24, 24, resample={"bilinear": 2, "bicubic": 3}[interpolation]))
    pixels_HWC = torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found, planes = torch.zeros((2, 3, 24, 24), dtype=torch.uint8)
    fit(pixels_HWC, spec, found)
    target = [24 if edge == min(size) else int(edge * 24 / min(size)) for edge in size]
    contiguous_1CHW = pixels_HWC.permute(2, 0, 1)[None].contiguous()
    resized_CHW = functional.interpolate(contiguous_1CHW, target, mode=interpolation, antialias=True)[0]
    top, left = (target[0] - 24) // 2, (target[1] - 24) // 2
    planes.copy_(resized_CHW[:, top : top + 24, left : left + 24])
    assert torch.equal(found, planes)
