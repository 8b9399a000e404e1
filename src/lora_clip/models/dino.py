"""DINOv2 and DINOv3: vision models alone, whose embedding is the pooled output (the class token, normed)."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from lora_clip.models.dino_tower import DinoTower
from lora_clip.models.generic import POOLED, Family


class Dinov2(Family):
    """DINOv2; its adapters name the modules of the tower itself."""

    name = "DINOv2"
    vision_class = "Dinov2Model"
    vision_modules = ()
    text_modules = ()
    any_size = True
    note = POOLED
    accelerator: ClassVar[type[nn.Module] | None] = DinoTower


class Dinov2WithRegisters(Dinov2):
    """DINOv2 with register tokens."""

    vision_class = "Dinov2WithRegistersModel"
    accelerator = None


class Dinov3(Dinov2):
    """DINOv3's transformers."""

    name = "DINOv3"
    vision_class = "DINOv3ViTModel"
    accelerator = None


class Dinov3ConvNext(Dinov3):
    """DINOv3's convolutional networks."""

    vision_class = "DINOv3ConvNextModel"
    accelerator = None
