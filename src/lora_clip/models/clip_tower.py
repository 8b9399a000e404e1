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
        *layers, last = vision.encoder.layers
        self.layers = nn.Sequential(*(Layer(layer) for layer in layers), LastLayer(last))
        self.projection = model.visual_projection

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D) of uint8 pixels (B, C, H, W), not yet of unit norm."""
        tokens_BTD = self.start_TD.repeat(len(pixels_BCHW), 1, 1)
        tokens_BTD[:, 1:] += self.patches(patchify(pixels_BCHW, self.patch).to(self.patches.weight.dtype))
        class_BD = self.layers(self.first_norm(tokens_BTD))
        return self.projection(self.last_norm(class_BD).to(self.projection.weight.dtype))


class Layer(nn.Module):
    """One layer of the tower, made of transformers' CLIPEncoderLayer."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.heads = int(attention.num_heads)
        self.attention_norm, self.mlp_norm = layer.layer_norm1, layer.layer_norm2
        self.query, self.out = attention.q_proj, attention.out_proj
        self.set_key_value(attention.k_proj, attention.v_proj)
        self.fc1, self.fc2, self.activation = mlp.fc1, mlp.fc2, mlp.activation_fn
        if "quick" in type(self.activation).__name__.lower():
            self.fc1, self.fc2 = scaled(mlp.fc1, QUICK_GELU), scaled(mlp.fc2, 1 / QUICK_GELU, bias=1)
            self.activation = nn.SiLU(inplace=True)

    def set_key_value(self, key: nn.Linear, value: nn.Linear) -> None:
        """Keep what makes keys and values of tokens."""
        self.key_value = stack(key, value)

    def forward(self, tokens_BTD: torch.Tensor) -> torch.Tensor:
        """The tokens after this layer."""
        tokens_BTD += self.attend(self.attention_norm(tokens_BTD).to(self.query.weight.dtype))
        return self.mlp_block(tokens_BTD)

    def attend(self, normed_BTD: torch.Tensor) -> torch.Tensor:
        """What every token takes from all."""
        query_BhTd = self.query(normed_BTD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key_BhTd, value_BhTd = (
            self.key_value(normed_BTD).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        )
        mixed_BhTd = functional.scaled_dot_product_attention(query_BhTd, key_BhTd, value_BhTd)
        return self.out(mixed_BhTd.transpose(1, 2).flatten(2))

    def mlp_block(self, tokens: torch.Tensor) -> torch.Tensor:
        """The tokens (..., D) after the layer's second half, each by itself."""
        normed = self.mlp_norm(tokens).to(self.fc1.weight.dtype)
        tokens += self.fc2(self.activation(self.fc1(normed)))
        return tokens


class LastLayer(Layer):
    """The layer of which only the class token is wanted: it attends to the others without their keys and values.

    With one query q a head, its scores q (K x + k) / sqrt(d) are (q K) x / sqrt(d) and a constant, which softmax does
    not see; what it takes, sum a (V x + v), is V (sum a x) + v. So K and V meet one vector a head, not every token.
    """

    def set_key_value(self, key: nn.Linear, value: nn.Linear) -> None:
        """Keep the weights, one matrix a head."""
        self.key, self.value = linear(key.weight, None), value

    def forward(self, tokens_BTD: torch.Tensor) -> torch.Tensor:
        """The class token (B, D) after this layer."""
        class_BD = tokens_BTD[:, 0].clone()
        class_BD += self.attend(self.attention_norm(tokens_BTD).to(self.query.weight.dtype))
        return self.mlp_block(class_BD)

    def attend(self, normed_BTD: torch.Tensor) -> torch.Tensor:
        """What the class token takes from all, (B, D)."""
        query_Bhd = self.query(normed_BTD[:, 0]).unflatten(-1, (self.heads, -1))
        asked_BhD = torch.einsum("Bhd,hdD->BhD", query_Bhd, self.key.weight.unflatten(0, (self.heads, -1)))
        tokens_B1TD, scale = normed_BTD[:, None], query_Bhd.shape[-1] ** -0.5
        mixed_BhD = functional.scaled_dot_product_attention(asked_BhD[:, None], tokens_B1TD, tokens_B1TD, scale=scale)[
            :, 0
        ]
        taken_Bhd = torch.einsum("BhD,hdD->Bhd", mixed_BhD, self.value.weight.unflatten(0, (self.heads, -1)))
        taken_BD = taken_Bhd.flatten(1) if self.value.bias is None else taken_Bhd.flatten(1) + self.value.bias
        return self.out(taken_BD)


def patchify(pixels_BCHW: torch.Tensor, patch: int) -> torch.Tensor:
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
