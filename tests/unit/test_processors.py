"""Every image processor's pixels, as its PIL form in transformers makes them; and photographs turned upright."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image, ImageOps

from helpers.images import encode, jpeg, photo
from helpers.models import save_base
from lora_clip.models.checkpoint import find_checkpoint
from lora_clip.models.digests import digests
from lora_clip.models.embedder import MergedEmbedder
from lora_clip.models.preprocess import parse_spec
from lora_clip.pixels.decode import orientation, prepare
from lora_clip.search.query import QueryEncoder
from lora_clip.types import PreprocessSpec

HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
ALIGN = {"rescale_offset": True, "rescale_factor": 1 / 127.5, "do_normalize": False, "include_top": False}
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "CLIP": ("CLIPImageProcessor", {}),
    "MetaCLIP 2": ("CLIPImageProcessor", {"size": {"shortest_edge": 96}, "crop_size": {"height": 96, "width": 96}}),
    "SigLIP": ("SiglipImageProcessor", {"size": {"height": 96, "width": 96}}),
    "SigLIP 2": ("SiglipImageProcessor", {"size": {"height": 64, "width": 64}, "resample": 2}),
    "SigLIP, lanczos": ("SiglipImageProcessor", {"size": {"height": 96, "width": 80}, "resample": 1}),
    "nearest": ("SiglipImageProcessor", {"size": {"height": 96, "width": 80}, "resample": 0}),
    "box": ("SiglipImageProcessor", {"size": {"height": 96, "width": 80}, "resample": 4}),
    "hamming": ("SiglipImageProcessor", {"size": {"height": 96, "width": 80}, "resample": 5}),
    "CLIPSeg": ("ViTImageProcessor", {"size": {"height": 88, "width": 88}, "image_mean": [0.485, 0.456, 0.406]}),
    "ViT, unsaid": ("ViTImageProcessor", {}),
    "DINOv2": ("BitImageProcessor", {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}}),
    "BiT, unsaid": ("BitImageProcessor", {}),
    "Chinese-CLIP": ("ChineseCLIPImageProcessor", {"size": {"height": 64, "width": 64}, "do_center_crop": False}),
    "BLIP": ("BlipImageProcessor", {}),
    "ALIGN": ("EfficientNetImageProcessor", {"size": {"height": 96, "width": 96}, "do_center_crop": True, **ALIGN}),
    "EfficientNet, unsaid": ("EfficientNetImageProcessor", {}),
    "not rescaled": ("SiglipImageProcessor", {"size": {"height": 32, "width": 32}, "do_rescale": False}),
    "not normalised": ("SiglipImageProcessor", {"size": {"height": 32, "width": 32}, "do_normalize": False}),
}


def shapes() -> dict[str, bytes]:
    image = photo(91, 60, 3)
    alpha = image.copy()
    alpha.putalpha(Image.fromarray(np.linspace(0, 255, 91 * 60, dtype=np.uint8).reshape(60, 91)))
    return {
        "JPEG": jpeg(301, 203),
        "one pixel high": encode(photo(40, 1), "PNG"),
        "very wide": jpeg(700, 20),
        "grey": encode(image.convert("L"), "JPEG"),
        "alpha": encode(alpha, "PNG"),
    }


SHAPES = shapes()


def values(data: bytes, spec: PreprocessSpec) -> torch.Tensor:
    """What a model receives, (C, H, W) float32."""
    out_CHW = torch.empty((3, *spec.crop), dtype=torch.uint8)
    prepare(data, spec, out_CHW)
    mean, std = (torch.tensor(one)[:, None, None] for one in (spec.mean, spec.std))
    return (out_CHW.float() * spec.scale - mean) / std


@pytest.mark.parametrize("name", PROCESSORS)
def test_values_are_those_of_the_processor(name: str) -> None:
    kind, config = PROCESSORS[name]
    processor = getattr(transformers, f"{kind}Pil")(**config)
    spec = parse_spec({"image_processor_type": kind, **config})
    assert parse_spec(processor.to_dict()) == spec, "as saved, and as little as was said"
    per_level = spec.scale / min(spec.std)
    for shape, data in SHAPES.items():
        with Image.open(io.BytesIO(data)) as image:
            expected = processor(image.convert("RGB"), return_tensors="pt")["pixel_values"][0].float()
        found = values(data, spec)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 2.01 * per_level, shape


def test_tipsv2s_values_are_those_of_its_steps() -> None:
    """Its processor needs torchvision, so its steps stand here: resized in uint8, rescaled, not normalised."""
    spec = parse_spec({"image_processor_type": "Tipsv2ImageProcessor"})
    assert (spec.resize, spec.interpolation, spec.mean, spec.std) == ((448, 448), "bilinear", (0.0,) * 3, (1.0,) * 3)
    spec = parse_spec({"image_processor_type": "Tipsv2ImageProcessor", "size": {"height": 48, "width": 64}})
    for data in SHAPES.values():
        with Image.open(io.BytesIO(data)) as image:
            resized = np.array(image.convert("RGB").resize((64, 48), Image.Resampling.BILINEAR))
        assert (values(data, spec) - torch.tensor(resized).permute(2, 0, 1) / 255).abs().max() <= 2.01 / 255


def test_dinov3s_resize_in_float_is_within_a_level() -> None:
    """Its processor rescales before it resizes, in float32; it needs torchvision, so its steps stand here."""
    spec = parse_spec({"image_processor_type": "DINOv3ViTImageProcessorFast", "size": {"height": 48, "width": 64}})
    assert (spec.interpolation, spec.mean) == ("bilinear", (0.485, 0.456, 0.406))
    mean, std = (torch.tensor(one)[:, None, None] for one in (spec.mean, spec.std))
    for data in SHAPES.values():
        with Image.open(io.BytesIO(data)) as image:
            pixels_1CHW = torch.tensor(np.array(image.convert("RGB"))).permute(2, 0, 1)[None] / 255
        resized = torch.nn.functional.interpolate(pixels_1CHW, (48, 64), mode="bilinear", antialias=True)[0]
        assert (values(data, spec) - (resized - mean) / std).abs().max() <= 2.01 / 255 / min(spec.std)


# --- upright ---


def tagged(turn: object, form: str, size: tuple[int, int] = (61, 40)) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = turn
    return encode(photo(*size, 1), form, exif=exif)


def both(data: bytes, spec: PreprocessSpec, decoding: str = "exact") -> tuple[torch.Tensor, torch.Tensor]:
    """Our pixels, and those of the same picture turned by Pillow and saved without loss."""
    with Image.open(io.BytesIO(data)) as image:
        turned = ImageOps.exif_transpose(image)
    found, expected = torch.empty(2, 3, *spec.crop, dtype=torch.uint8)
    size = prepare(data, replace(spec, orientation="exif"), found, decoding)
    assert size == (turned.height, turned.width), "what is recorded is the upright image's own size"
    prepare(encode(turned, "PNG"), spec, expected)
    return found.int(), expected.int()


SPEC = parse_spec({"size": 32, "crop_size": {"height": 32, "width": 24}})


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_picture_is_turned_upright_where_that_is_asked_for(turn: int, form: str) -> None:
    data = tagged(turn, form)
    assert orientation(data) == (1 if form == "TIFF" else turn), "Pillow turns a TIFF by itself, whoever asks"
    found, expected = both(data, SPEC)
    assert (found - expected).abs().max() <= 2
    lying = torch.empty(3, *SPEC.crop, dtype=torch.uint8)
    prepare(data, SPEC, lying)
    differs = (lying.int() - found).abs().max() > 10
    assert differs == (turn != 1 and form != "TIFF"), "by default as it lies, as transformers does"


def test_a_large_photograph_is_turned_as_well_when_decoded_fast() -> None:
    spec = parse_spec({"image_processor_type": "SiglipImageProcessor", "size": {"height": 100, "width": 20}})
    found, expected = both(tagged(6, "JPEG", (800, 600)), spec, "fast")
    assert 0 < (found - expected).abs().float().mean() < 1, "decoded at a part of its size, by its upright edges"


@pytest.mark.parametrize("turn", [0, 9, 77])
def test_a_tag_that_says_nothing_turns_nothing(turn: object) -> None:
    assert orientation(tagged(turn, "JPEG")) == 1
    assert orientation(jpeg()) == orientation(b"") == orientation(b"\xff\xd8 Exif\0\0 no image") == 1


def test_a_query_is_turned_as_the_images_were(tmp_path: Path) -> None:
    base = str(save_base(tmp_path / "base"))
    spec = replace(MergedEmbedder(find_checkpoint(base, None)).spec, orientation="exif")
    fingerprint = {
        **digests(find_checkpoint(base, None)),
        "preprocessing": spec.to_json(),
        "decode": "exact",
    }
    encoder = QueryEncoder.of({"model": {"base": base, "adapter": None}, "fingerprint": fingerprint})
    data = tagged(6, "PNG")
    with Image.open(io.BytesIO(data)) as image:
        upright = encode(ImageOps.exif_transpose(image), "PNG")
    assert encoder.image(data) @ encoder.image(upright) > 0.9999 > encoder.image(data) @ encoder.image(untagged(data))


def untagged(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as image:
        return encode(Image.fromarray(np.array(image)), "PNG")


def test_only_another_orientation_than_the_default_is_in_the_fingerprint() -> None:
    assert "orientation" not in SPEC.to_json()
    assert replace(SPEC, orientation="exif").to_json()["orientation"] == "exif"
