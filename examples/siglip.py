"""SigLIP as a family of models: this file, and a line in the registry (lora_clip/models/base.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lora_clip.models.generic import Family


class Siglip(Family):
    """SigLIP's two towers, run by transformers' own classes."""

    name = "SigLIP"
    vision_class = "SiglipVisionModel"
    text_class = "SiglipTextModel"
    vision_modules = ("vision_model",)  # in a SiglipModel: by these an adapter's weights are told apart
    text_modules = ("text_model",)

    def tokenize(self, tokenizer: Any, texts: Sequence[str], context: int) -> Any:
        """SigLIP was trained on texts padded to the whole context, without a mask."""
        return tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=context,
            return_tensors="pt",
            return_attention_mask=False,
        )
