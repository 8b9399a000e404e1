"""open_clip's vision transformer, small, with the weights of transformers' CLIP: what PEFT is put onto in tests."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn


class Block(nn.Module):
    """open_clip's ResidualAttentionBlock, module for module."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        own, width = layer.self_attn, layer.self_attn.out_proj.weight.shape[0]
        self.ln_1, self.ln_2 = layer.layer_norm1, layer.layer_norm2
        self.attn = nn.MultiheadAttention(width, own.num_heads, batch_first=True)
        self.mlp = nn.Sequential(OrderedDict(c_fc=layer.mlp.fc1, gelu=layer.mlp.activation_fn, c_proj=layer.mlp.fc2))
        projections = (own.q_proj, own.k_proj, own.v_proj)
        with torch.no_grad():
            self.attn.in_proj_weight.copy_(torch.cat([one.weight for one in projections]))
            self.attn.in_proj_bias.copy_(torch.cat([one.bias for one in projections]))
            self.attn.out_proj.load_state_dict(own.out_proj.state_dict())

    def forward(self, tokens_BTD: torch.Tensor) -> torch.Tensor:
        """Tokens (B, T, D) after attention and the two-layer network."""
        normed_BTD = self.ln_1(tokens_BTD)
        tokens_BTD = tokens_BTD + self.attn(normed_BTD, normed_BTD, normed_BTD, need_weights=False)[0]
        return tokens_BTD + self.mlp(self.ln_2(tokens_BTD))


class Transformer(nn.Module):
    """open_clip's `visual.transformer`."""

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(layer) for layer in layers)

    def forward(self, tokens_BTD: torch.Tensor) -> torch.Tensor:
        """Tokens (B, T, D) after all blocks."""
        for block in self.resblocks:
            tokens_BTD = block(tokens_BTD)
        return tokens_BTD


def embed_with(transformer: nn.Module, model: Any, values_BCHW: torch.Tensor) -> torch.Tensor:
    """Embeddings (B, D) by a CLIPModel in which `transformer` stands for the vision tower's encoder."""
    vision = model.vision_model
    tokens_BTD = transformer(vision.pre_layrnorm(vision.embeddings(values_BCHW)))
    return model.visual_projection(vision.post_layernorm(tokens_BTD[:, 0]))
