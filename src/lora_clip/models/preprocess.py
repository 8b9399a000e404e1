"""The preprocessing spec that a checkpoint came with: how its images become pixels."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_clip.errors import ModelError
from lora_clip.types import PreprocessSpec

INTERPOLATION = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""Pillow's numbers of its filters."""
STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}
COMMON: dict[str, Any] = {
    "do_resize": True,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}
HALF = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
CLIP = {
    **COMMON,
    "do_center_crop": True,
    "size": {"shortest_edge": 224},
    "crop_size": 224,
    "resample": 3,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
SQUARE = {**COMMON, "size": 224}
DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIP": CLIP,
    "ChineseCLIP": CLIP,
    "Bit": CLIP,
    "Siglip": {**SQUARE, **HALF, "resample": 3},
    "ViT": {**SQUARE, **HALF, "resample": 2},
    "Tipsv2": {**SQUARE, "size": 448, "do_normalize": False, "resample": 2},
    "DINOv3ViT": {**SQUARE, **IMAGENET, "resample": 2},
    "Blip": {**CLIP, "do_center_crop": False, "size": 384},
    "EfficientNet": {**COMMON, **HALF, "size": 346, "crop_size": 289, "resample": 3, "include_top": True},
}
"""What a configuration leaves unsaid, by the kind of its image processor: transformers' own values."""
SHORTEST_EDGE = ("CLIP", "ChineseCLIP", "Bit")
"""The kinds that read a size of one number as the shortest edge; the others squash to a square."""
NAFLEX = "Siglip2"


def load_spec(checkpoint: Path) -> PreprocessSpec:
    """The preprocessing spec in a checkpoint's `preprocessor_config.json`, or transformers 5's `processor_config.json`.

    Raises ModelError where there is none, or where it asks for steps that CLIP's processor does not have.
    """
    nested = _read_config(checkpoint / "processor_config.json").get("image_processor")
    config = nested or _read_config(checkpoint / "preprocessor_config.json")
    if not config:
        raise ModelError(
            f"{checkpoint} has no preprocessor_config.json, so how its pixels are made is unknown: "
            "save the processor beside the model (CLIPImageProcessor.from_pretrained(...).save_pretrained(folder))"
        )
    return parse_spec(config)


def _read_config(path: Path) -> dict[str, Any]:
    """The JSON object in a file, empty where there is no such file. Raises ModelError."""
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds no JSON object")
    return config


def parse_spec(config: Mapping[str, Any]) -> PreprocessSpec:
    """The spec that an image processor's configuration describes. Raises ModelError for one that is not understood."""
    kind = _kind(config)
    given = {name: value for name, value in config.items() if value is not None}
    try:
        return _spec({**DEFAULTS[kind], **given}, square=kind not in SHORTEST_EDGE)
    except ModelError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"the preprocessor configuration is not clear ({type(error).__name__}: {error})") from error


def _kind(config: Mapping[str, Any]) -> str:
    """The kind of image processor, `CLIP` for CLIPImageProcessorFast. Raises ModelError for one that is not known."""
    name = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "CLIPImageProcessor")
    kind = re.sub("(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", name)
    if kind == NAFLEX:
        raise ModelError(
            f"the preprocessor is {name} (naflex): each image has a shape of its own, and batches here have one. Take "
            "a SigLIP 2 of fixed size (such as google/siglip2-base-patch16-224), or save a SiglipImageProcessor of one "
            "size into a copy of the checkpoint to squash all images to that"
        )
    if kind not in DEFAULTS:
        known = ", ".join(f"{one}ImageProcessor" for one in DEFAULTS)
        raise ModelError(
            f"the preprocessor is {name}, whose steps are not known here: {known} are. Where one of them does the "
            "same, name it as image_processor_type in a copy of the checkpoint"
        )
    return kind


def _spec(config: Mapping[str, Any], square: bool) -> PreprocessSpec:
    """The spec of a configuration in which every key has a value; `square`: a size of one number is both edges."""
    unknown = [name for name, value in config.items() if name.startswith("do_") and value and name not in STEPS]
    if unknown:
        raise ModelError(f"the preprocessor asks for {', '.join(unknown)}, which is not one of the steps known here")
    if (resample := config["resample"]) not in INTERPOLATION:
        filters = ", ".join(f"{number} ({name})" for number, name in INTERPOLATION.items())
        raise ModelError(f"preprocessor resample={resample} is not supported: one of {filters} is expected")
    resize = _resize(config["size"], square) if config["do_resize"] else None
    crop = _height_width(config["crop_size"]) if config["do_center_crop"] else resize
    if not isinstance(crop, tuple):
        raise ModelError("the preprocessor neither crops nor resizes to one size, so images have no common shape")
    return PreprocessSpec(resize, crop, INTERPOLATION[resample], *_normalisation(config))


def _normalisation(config: Mapping[str, Any]) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
    """(scale, mean, std): one (x * scale - mean) / std for all that is done to values."""
    scale = float(config["rescale_factor"]) if config["do_rescale"] else 1.0
    mean = _per_channel(config["image_mean"]) if config["do_normalize"] else (0.0, 0.0, 0.0)
    std = _per_channel(config["image_std"]) if config["do_normalize"] else (1.0, 1.0, 1.0)
    if config.get("rescale_offset") and config["do_rescale"]:  # EfficientNet's: x * scale - 1
        mean = tuple(value + 1 for value in mean)
    if config.get("include_top"):  # EfficientNet's: divided by the deviation once more
        std = tuple(value * again for value, again in zip(std, _per_channel(config["image_std"]), strict=True))
    return scale, mean, std


def _resize(size: Any, square: bool) -> int | tuple[int, int]:
    if isinstance(size, int):
        return _height_width(size) if square else _positive(size)
    named = {name for name, value in size.items() if value is not None}
    return _positive(size["shortest_edge"]) if named == {"shortest_edge"} else _height_width(size)


def _height_width(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return _positive(size), _positive(size)
    if {name for name, value in size.items() if value is not None} != {"height", "width"}:
        raise ModelError(f"preprocessor size {dict(size)} is not supported: shortest_edge, or height and width")
    return _positive(size["height"]), _positive(size["width"])


def _positive(size: Any) -> int:
    if int(size) < 1:
        raise ModelError(f"preprocessor size {size} is not supported: 1 pixel or more is expected")
    return int(size)


def _per_channel(values: Any) -> tuple[float, ...]:
    if len(values) != 3:
        raise ModelError(f"preprocessor mean or std {values} is not supported: three numbers are expected")
    return tuple(float(value) for value in values)
