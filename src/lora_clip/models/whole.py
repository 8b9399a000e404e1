"""Dual encoders that transformers has only as whole models, asked by its generic API: get_image_features and its like.

The tower that is not wanted is dropped once the model is loaded.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from lora_clip.models.clip_tower import VisionTower
from lora_clip.models.generic import POOLED, Family


class AltClip(Family):
    """AltCLIP: CLIP's vision tower beside XLM-R."""

    name = "AltCLIP"
    vision_class = text_class = "AltCLIPModel"
    accelerator = VisionTower

    def context(self, text: nn.Module, tokenizer: Any) -> int:
        """XLM-R counts its positions from the one behind the padding's."""
        config: Any = text.config.text_config  # type: ignore[union-attr]
        return min(config.max_position_embeddings - config.pad_token_id - 1, tokenizer.model_max_length)


class ChineseClip(Family):
    """Chinese-CLIP: CLIP's vision tower beside BERT."""

    name = "Chinese-CLIP"
    vision_class = text_class = "ChineseCLIPModel"
    accelerator = VisionTower


class Align(Family):
    """ALIGN: EfficientNet, whose pooled output is the embedding, beside BERT with a projection."""

    name = "ALIGN"
    vision_class = text_class = "AlignModel"
    vision_modules = ("vision_model",)
    any_size = True


class Aimv2(Family):
    """AIMv2 with its text tower (aimv2-large-patch14-224-lit)."""

    name = "AIMv2"
    vision_class = "Aimv2Model"
    text_class: ClassVar[str | None] = "Aimv2Model"


class Aimv2Vision(Aimv2):
    """AIMv2's vision tower alone, where it pools (`use_head`)."""

    vision_class = "Aimv2VisionModel"
    text_class = None
    note = POOLED


class ClipSeg(Family):
    """The CLIP in CLIPSeg, which takes images of any size."""

    name = "CLIPSeg"
    vision_class = text_class = "CLIPSegModel"
    any_size = True


class Tipsv2(Family):
    """TIPSv2: class tokens beside means over texts, without projections; its tower takes images of any size."""

    name = "TIPSv2"
    vision_class = "Tipsv2Model"
    text_class: ClassVar[str | None] = "Tipsv2Model"
    vision_modules = ("vision_model",)
    text_modules = ("text_model",)
    any_size = True


class Tipsv2Vision(Tipsv2):
    """TIPSv2's vision tower alone."""

    vision_class = "Tipsv2VisionModel"
    text_class = None
    note = POOLED


class VisionTextDualEncoder(Family):
    """Two towers of any kind with projections, as those of other languages than English are often made."""

    name = "VisionTextDualEncoder"
    vision_class = text_class = "VisionTextDualEncoderModel"
