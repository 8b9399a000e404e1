"""GroupViT as a family of models: this file, and a line in the registry (lora_clip/models/base.py)."""

from __future__ import annotations

from lora_clip.models.generic import Family


class GroupVit(Family):
    """GroupViT's two towers with their projections, run by transformers' own class."""

    name = "GroupViT"
    vision_class = text_class = "GroupViTModel"  # the tower that is not wanted is dropped
    vision_modules = ("vision_model", "visual_projection")  # by these an adapter's weights are told apart
    text_modules = ("text_model", "text_projection")
