"""CLIP and MetaCLIP 2 as transformers has them: whole, or the vision tower with projection alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from lora_clip.models.base import read_config
from lora_clip.models.clip_tower import VisionTower
from lora_clip.models.generic import Family


class Clip(Family):
    """The towers with their projections, and a vision tower written out for speed."""

    name = "CLIP"
    vision_class = "CLIPVisionModelWithProjection"
    text_class = "CLIPTextModelWithProjection"
    tokenizer_class = "CLIPTokenizer"
    causal_text = True
    accelerator = VisionTower
    config_class: ClassVar[str] = "CLIPConfig"

    def vision_config(self, folder: Path) -> Any:
        """The vision tower's config, with the whole model's width of projection."""
        if "vision_config" in read_config(folder):
            return _tower_config(self.config_class, folder, "vision_config")
        return None

    def text_config(self, folder: Path) -> Any:
        """The text tower's config, with the whole model's width of projection."""
        return _tower_config(self.config_class, folder, "text_config")


class MetaClip2(Clip):
    """MetaCLIP 2: CLIP's vision tower, and a text tower for many languages."""

    name = "MetaCLIP 2"
    vision_class = "MetaClip2VisionModelWithProjection"
    text_class = "MetaClip2TextModelWithProjection"
    tokenizer_class = "AutoTokenizer"
    config_class = "MetaClip2Config"


def _tower_config(config_class: str, folder: Path, name: str) -> Any:
    """CLIPModel takes the projection's width from its own config, whatever the configs of its towers say."""
    import transformers

    whole: Any = getattr(transformers, config_class).from_pretrained(folder)
    tower = getattr(whole, name)
    tower.projection_dim = whole.projection_dim
    return tower
