"""BLIP for retrieval: embeddings that transformers' own class gives only of an image beside a text."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lora_clip.models.generic import Family


class Blip(Family):
    """BLIP's two towers with their projections, run by transformers' own class."""

    name = "BLIP"
    vision_class = text_class = "BlipForImageTextRetrieval"  # the tower that is not wanted is dropped
    vision_modules = ("vision_model", "vision_proj")  # by these an adapter's weights are told apart
    text_modules = ("text_encoder", "text_proj")

    def embed_images(self, vision: nn.Module, values_BCHW: torch.Tensor) -> torch.Tensor:
        """The class token, projected: transformers' class gives that only beside a text."""
        model: Any = vision
        return model.vision_proj(model.vision_model(pixel_values=values_BCHW).last_hidden_state[:, 0])

    def embed_texts(self, text: nn.Module, tokens: Any) -> torch.Tensor:
        """The class token of the text encoder, projected."""
        model: Any = text
        hidden_NTD = model.text_encoder(tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
        return model.text_proj(hidden_NTD[:, 0])
