"""The seam between the job and its models: what an embedder does, and which family a base model belongs to.

A new family is one new file (a subclass of `generic.Family`) and one line of FAMILIES; docs/extending.md adds one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lora_clip.errors import ModelError

if TYPE_CHECKING:
    import torch

    from lora_clip.models.generic import Family
    from lora_clip.types import PreprocessSpec

FAMILIES = {
    "clip": "lora_clip.models.clip:Clip",
    "clip_vision_model": "lora_clip.models.clip:Clip",
    "metaclip_2": "lora_clip.models.clip:MetaClip2",
    "metaclip_2_vision_model": "lora_clip.models.clip:MetaClip2",
    "siglip": "lora_clip.models.siglip:Siglip",
    "siglip_vision_model": "lora_clip.models.siglip:SiglipVision",
    "siglip2": "lora_clip.models.siglip:Siglip2",
    "siglip2_vision_model": "lora_clip.models.siglip:Siglip2Vision",
    "dinov2": "lora_clip.models.dino:Dinov2",
    "dinov2_with_registers": "lora_clip.models.dino:Dinov2WithRegisters",
    "dinov3_vit": "lora_clip.models.dino:Dinov3",
    "dinov3_convnext": "lora_clip.models.dino:Dinov3ConvNext",
    "altclip": "lora_clip.models.whole:AltClip",
    "chinese_clip": "lora_clip.models.whole:ChineseClip",
    "align": "lora_clip.models.whole:Align",
    "aimv2": "lora_clip.models.whole:Aimv2",
    "aimv2_vision_model": "lora_clip.models.whole:Aimv2Vision",
    "clipseg": "lora_clip.models.whole:ClipSeg",
    "tipsv2": "lora_clip.models.whole:Tipsv2",
    "tipsv2_vision_model": "lora_clip.models.whole:Tipsv2Vision",
    "vision-text-dual-encoder": "lora_clip.models.whole:VisionTextDualEncoder",
    "blip": "lora_clip.models.blip:Blip",
    "open_clip": "lora_clip.models.open_clip:OpenClipClip",
    "open_clip_metaclip_2": "lora_clip.models.open_clip:OpenClipMetaClip2",
    "open_clip_siglip": "lora_clip.models.open_clip:OpenClipSiglip",
}
"""The `model_type` of a checkpoint's config.json, and the module and class of its family, imported when it is met.

The last ones are told by an open_clip_config.json.
"""
CONFIG, OPEN_CLIP_CONFIG = "config.json", "open_clip_config.json"


class Embedder(Protocol):
    """One encoder with its adapter merged: `spec` says how its pixels are made, `width` is D."""

    @property
    def spec(self) -> PreprocessSpec:
        """How images become the pixels that `embed_images` takes."""
        ...

    @property
    def width(self) -> int:
        """The width D of an embedding."""
        ...

    def embed_images(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D) of uint8 pixels (B, C, H, W), float32, of unit L2 norm."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor | None:
        """Embeddings (N, D) of texts, float32, of unit L2 norm; None where the model has no text tower."""
        ...


def find_family(folder: Path) -> Family:
    """The family of the base model in `folder`. Raises ModelError for one that is not known, naming those that are."""
    kind = _kind_of(folder)
    if kind not in FAMILIES:
        own = "; code that lies in a checkpoint (auto_map) is never run" if "auto_map" in read_config(folder) else ""
        raise ModelError(
            f"base {folder} is a model of type {kind}: those that can be embedded with are {', '.join(FAMILIES)}{own}. "
            "Another one takes a file and a line: docs/extending.md shows how"
        )
    module, _, name = FAMILIES[kind].partition(":")
    return getattr(import_module(module), name)()


def is_of_open_clip(folder: Path) -> bool:
    """Whether a checkpoint is read as open_clip's: it has such a config, and none that transformers itself knows."""
    if not (folder / OPEN_CLIP_CONFIG).is_file():
        return False
    config = read_config(folder) if (folder / CONFIG).is_file() else {}
    return config.get("model_type") not in FAMILIES or "auto_map" in config


def _kind_of(folder: Path) -> Any:
    if not is_of_open_clip(folder):
        return read_config(folder).get("model_type")
    from lora_clip.models.open_clip_config import kind_of

    return kind_of(folder)


def config_file(folder: Path) -> Path:
    """The file that says what a base model is."""
    return folder / (OPEN_CLIP_CONFIG if is_of_open_clip(folder) else CONFIG)


def read_config(folder: Path) -> dict[str, Any]:
    """A base model's config.json. Raises ModelError where it is not one."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a model's config: a JSON object is expected")
    return config
