"""CLIP, as transformers has it: whole (`clip`) or its vision tower with projection alone (`clip_vision_model`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_clip.models.base import read_config
from lora_clip.models.clip_tower import VisionTower
from lora_clip.models.generic import Family


class Clip(Family):
    """The towers with their projections, and a vision tower written out for speed."""

    name = "CLIP"
    vision_class = "CLIPVisionModelWithProjection"
    text_class = "CLIPTextModelWithProjection"
    tokenizer_class = "CLIPTokenizer"
    accelerator = VisionTower

    def vision_config(self, folder: Path) -> Any:
        """The vision tower's config, with the whole model's width of projection."""
        if read_config(folder)["model_type"] == "clip":
            return _tower_config(folder, "vision_config")
        return None

    def text_config(self, folder: Path) -> Any:
        """The text tower's config, with the whole model's width of projection."""
        return _tower_config(folder, "text_config")


def _tower_config(folder: Path, name: str) -> Any:
    """CLIPModel takes the projection's width from its own config, whatever the configs of its towers say."""
    from transformers import CLIPConfig

    whole: Any = CLIPConfig.from_pretrained(folder)
    tower = getattr(whole, name)
    tower.projection_dim = whole.projection_dim
    return tower
