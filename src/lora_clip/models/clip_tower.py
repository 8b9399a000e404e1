"""CLIP's vision tower, written out for embedding: the arithmetic of transformers' model, without what is not needed.

What it saves: normalisation lies in the patch embedding's weights; the last layer computes one token, since the others
of its results go nowhere; queries, keys and values are one product; quick_gelu is one pass. `embedder.py` compares it
with transformers' own model whenever one is loaded. Beside the shapes of `types.py`:
    T  tokens of an image: the class token, then its patches, row by row
    h  attention heads
    d  width of a head, D / h
    P  values of a patch
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lora_clip.models.generic import UnfitTowerError, keeps_stream
from lora_clip.types import PreprocessSpec

ALIGNED = 8
"""How many values of two bytes are 16 bytes."""
QUICK_GELU = 1.702
"""quick_gelu(x) = x * sigmoid(1.702 x) = silu(1.702 x) / 1.702: the factors go into the weights around it."""


BUILT_OF = ("embeddings", "pre_layrnorm", "encoder", "post_layernorm")
"""Transformers' names of what a CLIP vision tower is built of; the spelling is theirs."""


LAYERS = ("CLIPEncoderLayer", "MetaClip2EncoderLayer", "AltCLIPEncoderLayer", "ChineseCLIPVisionLayer")
"""Transformers' names of a layer with the arithmetic below: copies of CLIP's."""


class VisionTower(nn.Module):
    """Pixels to projected embeddings, made of a CLIPVisionModelWithProjection, whose weights it takes over.

    The residual stream of tokens has the dtype of `start_TD`, the products have that of their weights.
    Raises UnfitTowerError for a model with a structure that is not the one below.
    """

    def __init__(self, model: nn.Module, spec: PreprocessSpec) -> None:
        super().__init__()
        vision: Any = model.vision_model
        check_structure(vision)
        convolution = vision.embeddings.patch_embedding
        self.patch = int(convolution.kernel_size[0])
        self.patches, shift_D = fold(convolution, spec)
        # all that the tokens start from besides their pixels: positions, the class token, the folded mean
        start_TD = vision.embeddings.position_embedding.weight.detach().clone()
        start_TD[0] += vision.embeddings.class_embedding.detach()
        start_TD[1:] += shift_D
        self.start_TD = nn.Parameter(start_TD, requires_grad=False)
        self.first_norm, self.last_norm = vision.pre_layrnorm, vision.post_layernorm
        *layers, last = vision.encoder.layers
        self.layers = nn.Sequential(*(Layer(layer) for layer in layers), LastLayer(last))
        self.projection: Any = model.visual_projection

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D) of uint8 pixels (B, C, H, W), not yet of unit norm."""
        tokens_BTD = self.start_TD.repeat(len(pixels_BCHW), 1, 1)
        patches_BTP = patchify(pixels_BCHW, self.patch, self.patches.in_features)
        tokens_BTD[:, 1:] += self.patches(patches_BTP.to(self.patches.weight.dtype))
        class_BD = self.layers(self.first_norm(tokens_BTD))
        return self.projection(self.last_norm(class_BD))

    def cast(self, dtype: torch.dtype) -> None:
        """Let the products be computed in `dtype`.

        The residual stream and its norms stay float32, and so does what only the class token passes through, since it
        costs next to nothing: that brings bfloat16's embeddings several times closer to float32's. A GPU would pay for
        the stream with the memory traffic of twice the bytes; in float16 it need not, whose rounding is 8 times finer.
        """
        if keeps_stream(dtype, self.start_TD.device):
            self.patches.to(dtype)
            for layer in self.layers:
                layer.cast(dtype)  # type: ignore[operator]
        else:
            self.to(dtype)

    def regions(self) -> list[nn.Module]:
        """What is compiled, each by itself: all layers but the last are one form with other weights."""
        return list(self.layers)

    def not_quantized(self) -> list[nn.Module]:
        """What int8 and fp8 leave alone: the first product, and what only the class token passes through."""
        return [self.patches, *self.layers[-1].modules(), self.projection]


def check_structure(vision: Any) -> None:
    """Raises UnfitTowerError where transformers' vision tower is not built of what this file writes out."""
    if lacking := [name for name in BUILT_OF if not hasattr(vision, name)]:
        raise UnfitTowerError(f"does not know a vision tower without {', '.join(lacking)}")
    convolution = vision.embeddings.patch_embedding
    if convolution.stride != convolution.kernel_size or any(convolution.padding):
        raise UnfitTowerError("knows only patches that lie side by side")
    kinds = {type(layer).__name__ for layer in vision.encoder.layers}
    if not kinds <= set(LAYERS):
        raise UnfitTowerError(f"does not know layers of type {', '.join(sorted(kinds))}")


class Layer(nn.Module):
    """One pre-norm transformer layer, made of transformers' CLIPEncoderLayer."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.heads = int(attention.num_heads)
        self.attention_norm, self.mlp_norm = layer.layer_norm1, layer.layer_norm2
        self.set_attention(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out = attention.out_proj
        self.fc1, self.fc2, self.activation = mlp.fc1, mlp.fc2, mlp.activation_fn
        if "quick" in type(self.activation).__name__.lower():
            # transformers' quick_gelu is three passes over the widest tensor of the layer, SiLU is one
            self.fc1, self.fc2 = scaled(mlp.fc1, QUICK_GELU), scaled(mlp.fc2, 1 / QUICK_GELU, bias=1)
            self.activation = nn.SiLU(inplace=True)

    def cast(self, dtype: torch.dtype) -> None:
        """Let the products of all tokens be computed in `dtype`."""
        for module in (self.qkv, self.out, self.fc1, self.fc2):
            module.to(dtype)

    def set_attention(self, query: nn.Linear, key: nn.Linear, value: nn.Linear) -> None:
        """Keep the projections to queries, keys and values: one product reads the tokens once for all three."""
        self.qkv = stack(query, key, value)

    def forward(self, tokens_BTD: torch.Tensor) -> torch.Tensor:
        """The residual stream after this layer, in place."""
        tokens_BTD += self.self_attention(self.attention_norm(tokens_BTD))
        tokens_BTD += self.mlp(self.mlp_norm(tokens_BTD))
        return tokens_BTD

    def self_attention(self, normed_BTD: torch.Tensor) -> torch.Tensor:
        """Multi-head self-attention of an image's tokens, with the output projection: (B, T, D)."""
        qkv_BTD = self.qkv(normed_BTD.to(self.qkv.weight.dtype))
        query_BhTd, key_BhTd, value_BhTd = qkv_BTD.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        context_BhTd = functional.scaled_dot_product_attention(query_BhTd, key_BhTd, value_BhTd)
        return self.out(context_BhTd.transpose(1, 2).flatten(2))

    def mlp(self, normed: torch.Tensor) -> torch.Tensor:
        """The feed-forward block on tokens (..., D)."""
        return self.fc2(self.activation(self.fc1(normed.to(self.fc1.weight.dtype))))


class LastLayer(Layer):
    """The layer of which only the class token is wanted: one query, and no key or value of any other token.

    With one query q a head, its scores q (K x + k) / sqrt(d) are (q K) x / sqrt(d) and a constant, which softmax does
    not see; its output, sum a (V x + v), is V (sum a x) + v, since the weights a sum to 1. So K and V meet one vector a
    head, not every token, and the mlp sees one token an image.
    """

    def set_attention(self, query: nn.Linear, key: nn.Linear, value: nn.Linear) -> None:
        """Keep the weights, one matrix a head; the keys' bias is the constant that softmax does not see."""
        self.query, self.key, self.value = query, linear(key.weight, None), value

    def cast(self, dtype: torch.dtype) -> None:
        """Let attention be computed in `dtype`; the rest is of one token an image."""
        for module in (self.query, self.key, self.value):
            module.to(dtype)

    def forward(self, tokens_BTD: torch.Tensor) -> torch.Tensor:
        """The class token (B, D) after this layer."""
        class_BD = tokens_BTD[:, 0].clone()
        class_BD += self.self_attention(self.attention_norm(tokens_BTD))
        class_BD += self.mlp(self.mlp_norm(class_BD))
        return class_BD

    def self_attention(self, normed_BTD: torch.Tensor) -> torch.Tensor:
        """Multi-head attention with the class token as the only query: (B, D)."""
        normed_BTD = normed_BTD.to(self.query.weight.dtype)
        query_Bhd = self.query(normed_BTD[:, 0]).unflatten(-1, (self.heads, -1))
        query_BhD = torch.einsum("Bhd,hdD->BhD", query_Bhd, self.key.weight.unflatten(0, (self.heads, -1)))
        # the heads' queries are a sequence of h for attention with one head, whose keys and values are the tokens
        tokens_B1TD, scale = normed_BTD[:, None], query_Bhd.shape[-1] ** -0.5
        mean_B1hD = functional.scaled_dot_product_attention(query_BhD[:, None], tokens_B1TD, tokens_B1TD, scale=scale)
        value_hdD = self.value.weight.unflatten(0, (self.heads, -1))
        context_BD = torch.einsum("BhD,hdD->Bhd", mean_B1hD[:, 0], value_hdD).flatten(1)
        context_BD = context_BD if self.value.bias is None else context_BD + self.value.bias
        return self.out(context_BD.to(self.out.weight.dtype))


def patchify(pixels_BCHW: torch.Tensor, patch: int, length: int) -> torch.Tensor:
    """The whole patches of images, row by row, each as one vector of C * patch * patch values and zeros: (B, T - 1, P).

    P is `length`, that of the weights' rows.
    """
    height, width = (side // patch for side in pixels_BCHW.shape[2:])
    whole_BCHW = pixels_BCHW[:, :, : height * patch, : width * patch]
    grid_BChpwp = whole_BCHW.unflatten(3, (width, patch)).unflatten(2, (height, patch))
    # a mere copy of bytes: a convolution over patches that lie side by side is one product
    patches_BTP = grid_BChpwp.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    padding = length - patches_BTP.shape[-1]
    return functional.pad(patches_BTP, (0, padding)) if padding else patches_BTP


def fold(patch_embedding: nn.Module, spec: PreprocessSpec) -> tuple[nn.Linear, torch.Tensor]:
    """A product of raw pixel values and a vector (D,) to add, equal to a patch embedding of normalised pixels.

    conv((x * scale - mean) / std) = weight' x + shift, weight' = weight * scale / std, shift = bias - sum(weight *
    mean / std): uint8 values are exact in bfloat16, and a pass over the whole batch is saved. Rows are padded with
    zeros to a multiple of 16 bytes, which a GPU's fast products want; those of patches of 14 pixels are not.
    """
    assert isinstance(patch_embedding, nn.Conv2d)
    weight_DCHW = patch_embedding.weight.detach()
    mean_C11, std_C11 = (weight_DCHW.new_tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    # the sum has terms of both signs and thousands of them, so float64; on the CPU, since MPS has none
    shift_D = -(weight_DCHW.cpu().double() * (mean_C11 / std_C11).cpu().double()).sum(dim=(1, 2, 3))
    if patch_embedding.bias is not None:
        shift_D += patch_embedding.bias.detach().cpu()
    weight_DP = (weight_DCHW * (spec.scale / std_C11)).flatten(1)
    patches = linear(functional.pad(weight_DP, (0, -weight_DP.shape[1] % ALIGNED)), None)
    return patches, shift_D.to(weight_DCHW.dtype).to(weight_DCHW.device)


def linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A Linear of given weights (out, in)."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.detach(), requires_grad=False)
    made.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)  # type: ignore[assignment]
    return made


def stack(*modules: nn.Linear) -> nn.Linear:
    """One Linear that gives the results of several of the same input, one after the other."""
    bias = None if modules[0].bias is None else torch.cat([module.bias for module in modules])
    return linear(torch.cat([module.weight for module in modules]), bias)


def scaled(module: nn.Linear, weight: float, bias: float | None = None) -> nn.Linear:
    """A Linear whose weight, and with it the bias where no other factor is given, is multiplied."""
    factor = weight if bias is None else bias
    return linear(module.weight * weight, None if module.bias is None else module.bias * factor)
