"""CLIP's vision tower, written out for embedding: the arithmetic of transformers' model, without what is not needed.

What it saves: normalisation lies in the patch embedding's weights; the last layer computes one token, since the others
of its results go nowhere; keys and values are one product; quick_gelu is one pass. `encoder.py` compares the result
with transformers' own model whenever one is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from transformers import CLIPVisionModelWithProjection

QUICK_GELU = 1.702
"""quick_gelu(x) = x * sigmoid(1.702 x) = silu(1.702 x) / 1.702: the factors go into the weights around it."""


@dataclass(frozen=True)
class Normalisation:
    """What turns a uint8 pixel into the model's input: (x * scale - mean) / std, one mean and std a channel."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


class VisionTower(nn.Module):
    """Pixels to projected embeddings; T = tokens of an image: its class token, then its patches, row by row.

    The stream of tokens has the dtype of `start_TD`, the products have that of their weights.
    """

    def __init__(self, model: CLIPVisionModelWithProjection, normalisation: Normalisation) -> None:
        super().__init__()
        vision: Any = model.vision_model
        convolution = vision.embeddings.patch_embedding
        self.patch = int(convolution.kernel_size[0])
        self.patches, shift_D = fold(convolution, normalisation)
        start_TD = vision.embeddings.position_embedding.weight.detach().clone()
        start_TD[0] += vision.embeddings.class_embedding.detach()
        start_TD[1:] += shift_D
        self.start_TD = nn.Parameter(start_TD, requires_grad=False)
        self.first_norm, self.last_norm = vision.pre_layrnorm, vision.post_layernorm
        self.layers = nn.ModuleList(Layer(layer) for layer in vision.encoder.layers)
        self.projection = model.visual_projection

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D) of uint8 pixels (B, C, H, W), not yet of unit norm."""
        tokens_BTD = self.start_TD.repeat(len(pixels_BCHW), 1, 1)
        tokens_BTD[:, 1:] += self.patches(cut(pixels_BCHW, self.patch).to(self.patches.weight.dtype))
        tokens_BTD = self.first_norm(tokens_BTD)
        for layer in self.layers[:-1]:
            tokens_BTD = layer(tokens_BTD, wanted=tokens_BTD.shape[1])
        tokens_BTD = self.layers[-1](tokens_BTD, wanted=1)
        return self.projection(self.last_norm(tokens_BTD[:, 0]).to(self.projection.weight.dtype))


class Layer(nn.Module):
    """One layer of the tower, made of transformers' CLIPEncoderLayer."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.heads = int(attention.num_heads)
        self.attention_norm, self.mlp_norm = layer.layer_norm1, layer.layer_norm2
        self.query, self.out = attention.q_proj, attention.out_proj
        self.key_value = stack(attention.k_proj, attention.v_proj)
        self.widen, self.narrow, self.activation = mlp.fc1, mlp.fc2, mlp.activation_fn
        if "quick" in type(self.activation).__name__.lower():
            self.widen, self.narrow = scaled(mlp.fc1, QUICK_GELU), scaled(mlp.fc2, 1 / QUICK_GELU, bias=1)
            self.activation = nn.SiLU(inplace=True)

    def forward(self, tokens_BTD: torch.Tensor, wanted: int) -> torch.Tensor:
        """The first `wanted` tokens after this layer; they attend to all tokens."""
        normed_BTD = self.attention_norm(tokens_BTD).to(self.query.weight.dtype)
        tokens_BTD = tokens_BTD[:, :wanted]
        tokens_BTD += self._attend(normed_BTD, wanted)
        normed_BTD = self.mlp_norm(tokens_BTD).to(self.widen.weight.dtype)
        tokens_BTD += self.narrow(self.activation(self.widen(normed_BTD)))
        return tokens_BTD

    def _attend(self, normed_BTD: torch.Tensor, wanted: int) -> torch.Tensor:
        query_BhTd = self.query(normed_BTD[:, :wanted]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key_BhTd, value_BhTd = (
            self.key_value(normed_BTD).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        )
        mixed_BhTd = functional.scaled_dot_product_attention(query_BhTd, key_BhTd, value_BhTd)
        return self.out(mixed_BhTd.transpose(1, 2).flatten(2))


def cut(pixels_BCHW: torch.Tensor, patch: int) -> torch.Tensor:
    """The whole patches of images, row by row, each as one vector: (B, T - 1, C * patch * patch)."""
    height, width = (side // patch for side in pixels_BCHW.shape[2:])
    whole_BCHW = pixels_BCHW[:, :, : height * patch, : width * patch]
    cut_BChpwp = whole_BCHW.unflatten(3, (width, patch)).unflatten(2, (height, patch))
    return cut_BChpwp.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def fold(patch_embedding: nn.Module, normalisation: Normalisation) -> tuple[nn.Linear, torch.Tensor]:
    """A product of raw pixel values and a vector (D,) to add, equal to a patch embedding of normalised pixels.

    conv((x * scale - mean) / std) = weight' x + shift, weight' = weight * scale / std, shift = bias - sum(weight *
    mean / std): uint8 values are exact in bfloat16, and a pass over the whole batch is saved.
    """
    assert isinstance(patch_embedding, nn.Conv2d)
    weight_DCHW = patch_embedding.weight.detach()
    mean_C11, std_C11 = (
        weight_DCHW.new_tensor(each)[:, None, None] for each in (normalisation.mean, normalisation.std)
    )
    shift_D = -(weight_DCHW.double() * (mean_C11 / std_C11).double()).sum(dim=(1, 2, 3))
    if patch_embedding.bias is not None:
        shift_D += patch_embedding.bias.detach()
    return linear((weight_DCHW * (normalisation.scale / std_C11)).flatten(1), None), shift_D.to(weight_DCHW.dtype)


def linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A Linear of given weights (out, in)."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.detach(), requires_grad=False)
    made.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)  # type: ignore[assignment]
    return made


def stack(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    """One Linear that gives the results of two of the same input, one after the other."""
    bias = None if first.bias is None else torch.cat([first.bias, second.bias])
    return linear(torch.cat([first.weight, second.weight]), bias)


def scaled(module: nn.Linear, weight: float, bias: float | None = None) -> nn.Linear:
    """A Linear whose weight, and with it the bias where no other factor is given, is multiplied."""
    factor = weight if bias is None else bias
    return linear(module.weight * weight, None if module.bias is None else module.bias * factor)
