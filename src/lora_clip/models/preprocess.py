"""The preprocessing spec that a checkpoint came with: how its images become pixels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_clip.errors import ModelError
from lora_clip.types import PreprocessSpec

INTERPOLATION = {2: "bilinear", 3: "bicubic"}
STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}
OTHER_DEFAULTS: dict[str, Any] = {
    "do_resize": True,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}
CLIP_DEFAULTS: dict[str, Any] = OTHER_DEFAULTS | {
    "do_center_crop": True,
    "size": 224,
    "crop_size": 224,
    "resample": 3,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
"""What a configuration leaves unsaid: CLIPImageProcessor's own values; of other processors, what all have in common."""


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
    """The spec that a CLIPImageProcessor configuration describes. Raises ModelError for one that is not understood."""
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "CLIP")
    given = {name: value for name, value in config.items() if value is not None}
    try:
        return _spec({**(CLIP_DEFAULTS if kind.startswith("CLIP") else OTHER_DEFAULTS), **given})
    except ModelError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"the preprocessor configuration is not clear ({type(error).__name__}: {error})") from error


def _spec(config: Mapping[str, Any]) -> PreprocessSpec:
    """The spec of a configuration in which every key has a value."""
    unknown = [name for name, value in config.items() if name.startswith("do_") and value and name not in STEPS]
    if unknown:
        raise ModelError(f"the preprocessor asks for {', '.join(unknown)}, which is not one of CLIP's steps")
    if (resample := config["resample"]) not in INTERPOLATION:
        raise ModelError(f"preprocessor resample={resample} is not supported: 2 (bilinear) or 3 (bicubic) is expected")
    resize = _resize(config["size"]) if config["do_resize"] else None
    crop = _height_width(config["crop_size"]) if config["do_center_crop"] else resize
    if not isinstance(crop, tuple):
        raise ModelError("the preprocessor neither crops nor resizes to one size, so images have no common shape")
    scale = float(config["rescale_factor"]) if config["do_rescale"] else 1.0
    mean = _per_channel(config["image_mean"]) if config["do_normalize"] else (0.0, 0.0, 0.0)
    std = _per_channel(config["image_std"]) if config["do_normalize"] else (1.0, 1.0, 1.0)
    return PreprocessSpec(resize, crop, INTERPOLATION[resample], scale, mean, std)


def _resize(size: Any) -> int | tuple[int, int]:
    if isinstance(size, int):
        return _positive(size)
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
