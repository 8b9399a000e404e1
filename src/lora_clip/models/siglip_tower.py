"""SigLIP's vision tower, written out on the blocks of CLIP's: the head that pools asks with one query, once folded."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lora_clip.models.clip_tower import Layer, VisionTower, fold, patchify
from lora_clip.models.generic import UnfitTowerError
from lora_clip.types import PreprocessSpec


class SiglipTower(VisionTower):
    """Pixels to pooled embeddings, made of a SiglipVisionModel, whose weights it takes over.

    Raises UnfitTowerError for a model with a structure that is not the one below.
    """

    def __init__(self, model: nn.Module, spec: PreprocessSpec) -> None:
        nn.Module.__init__(self)
        vision: Any = getattr(model, "vision_model", model)
        try:
            convolution = vision.embeddings.patch_embedding
            start_TD = vision.embeddings.position_embedding.weight.detach().clone()
            layers, self.last_norm = vision.encoder.layers, vision.post_layernorm
            self.head = PoolingHead(vision.head)
            self.layers = nn.Sequential(*map(Layer, layers))
        except AttributeError as error:
            raise UnfitTowerError(f"does not know a vision tower of another structure ({error})") from error
        self.patch = int(convolution.kernel_size[0])
        self.patches, shift_D = fold(convolution, spec)
        self.start_TD = nn.Parameter(start_TD + shift_D, requires_grad=False)

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D) of uint8 pixels (B, C, H, W), not yet of unit norm."""
        patches_BTP = patchify(pixels_BCHW, self.patch).to(self.patches.weight.dtype)
        tokens_BTD = self.start_TD + self.patches(patches_BTP)
        return self.head(self.last_norm(self.layers(tokens_BTD)))

    def not_quantized(self) -> list[nn.Module]:
        """What int8 and fp8 leave alone: the first product, and what only one token an image passes through."""
        return [self.patches, *self.head.modules()]


class PoolingHead(nn.Module):
    """Attention of one learned query over all tokens, and an mlp; made of SiglipMultiheadAttentionPoolingHead.

    As in CLIP's last layer, one query lets keys and values meet one vector a head: the query goes through the keys'
    weights, here once for all images, and the values' weights come after the sum.
    """

    def __init__(self, head: Any) -> None:
        super().__init__()
        attention = head.attention
        query_DD, key_DD, value_DD = attention.in_proj_weight.detach().chunk(3)
        bias_D, _, value_D = attention.in_proj_bias.detach().chunk(3)  # the keys' is a constant to softmax
        self.heads, self.scale = int(attention.num_heads), attention.head_dim**-0.5
        query_hd = functional.linear(head.probe.detach()[0, 0], query_DD, bias_D).unflatten(-1, (self.heads, -1))
        folded_hD = torch.einsum("hd,hdD->hD", query_hd, key_DD.unflatten(0, (self.heads, -1)))
        self.query_hD = nn.Parameter(folded_hD, requires_grad=False)
        self.value_weight = nn.Parameter(value_DD.clone(), requires_grad=False)
        self.value_bias = nn.Parameter(value_D.clone(), requires_grad=False)
        self.out, self.norm, self.mlp = attention.out_proj, head.layernorm, head.mlp

    def forward(self, tokens_BTD: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D) of all tokens of images."""
        query_B1hD = self.query_hD.expand(len(tokens_BTD), 1, -1, -1)
        tokens_B1TD = tokens_BTD[:, None]
        mean_B1hD = functional.scaled_dot_product_attention(query_B1hD, tokens_B1TD, tokens_B1TD, scale=self.scale)
        value_hdD = self.value_weight.unflatten(0, (self.heads, -1))
        pooled_BD = torch.einsum("BhD,hdD->Bhd", mean_B1hD[:, 0], value_hdD).flatten(1) + self.value_bias
        embedding_BD = self.out(pooled_BD)
        return embedding_BD + self.mlp(self.norm(embedding_BD))
