"""SigLIP and the SigLIP 2 of fixed size (`siglip`), its vision tower alone, and `siglip2` with pixels of one size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from lora_clip.errors import ModelError
from lora_clip.models.base import read_config
from lora_clip.models.generic import POOLED, Family, embedding_of
from lora_clip.types import PreprocessSpec


class Siglip(Family):
    """SigLIP's two towers, run by transformers' own classes; there is no projection behind them."""

    name = "SigLIP"
    vision_class = "SiglipVisionModel"
    text_class: ClassVar[str | None] = "SiglipTextModel"
    vision_modules = ("vision_model",)
    text_modules = ("text_model",)

    def tokenize(self, tokenizer: Any, texts: Sequence[str], context: int) -> Any:
        """SigLIP was trained on texts padded to the whole context (64 tokens), without a mask."""
        return tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=context,
            return_tensors="pt",
            return_attention_mask=False,
        )

    def context(self, text: nn.Module, tokenizer: Any) -> int:
        """All positions of the tower: texts are padded to its end, whatever the tokenizer says of itself."""
        config: Any = text.config
        return int(config.max_position_embeddings)


class SiglipVision(Siglip):
    """The vision tower alone, as SiglipVisionModel saves it."""

    text_class = None
    note = POOLED


class Siglip2(Siglip):
    """SigLIP 2 as transformers' `siglip2` has it, on images of one size: its patches are cut here.

    A checkpoint with Siglip2ImageProcessor (naflex: each image has a shape of its own) is refused.
    """

    name = "SigLIP 2"
    vision_class = "Siglip2VisionModel"
    text_class: ClassVar[str | None] = "Siglip2TextModel"
    any_size = True

    def load_spec(self, folder: Path) -> PreprocessSpec:
        """How images become pixels. Raises ModelError for naflex, and for sizes that patches do not fill."""
        spec = super().load_spec(folder)
        config = read_config(folder)
        patch = config.get("vision_config", config).get("patch_size", 16)
        if spec.crop[0] % patch or spec.crop[1] % patch:
            raise ModelError(f"base {folder}: images of {spec.crop} pixels are not whole patches of {patch}")
        return spec

    def embed_images(self, vision: nn.Module, values_BCHW: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D), of any norm, of normalised pixels, which the tower takes as flat patches."""
        config: Any = vision.config
        patch, (count, channels, height, width) = config.patch_size, values_BCHW.shape
        rows, columns = height // patch, width // patch
        cut = values_BCHW.reshape(count, channels, rows, patch, columns, patch).permute(0, 2, 4, 3, 5, 1)
        patches = cut.reshape(count, rows * columns, patch * patch * channels)
        shapes = torch.tensor([[rows, columns]] * count)
        mask = torch.ones(patches.shape[:2], dtype=torch.int64, device=patches.device)
        return embedding_of(vision(pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=shapes))


class Siglip2Vision(Siglip2):
    """The vision tower alone, as Siglip2VisionModel saves it."""

    text_class = None
    note = POOLED
