"""DINOv2's vision tower, written out on the blocks of CLIP's: the last layer computes the class token alone.

The scale of each residual branch goes into the weights before it, positions are interpolated once.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from lora_clip.models.clip_tower import LastLayer, Layer, VisionTower, fold, linear
from lora_clip.models.generic import UnfitTowerError
from lora_clip.types import PreprocessSpec


class DinoTower(VisionTower):
    """Pixels to the pooled output, made of a Dinov2Model, whose weights it takes over.

    Raises UnfitTowerError for a model with a structure that is not the one below.
    """

    def __init__(self, model: nn.Module, spec: PreprocessSpec) -> None:
        nn.Module.__init__(self)
        vision: Any = model
        try:
            layers = [as_clip(layer) for layer in vision.encoder.layer]
            convolution = vision.embeddings.patch_embeddings.projection
            start_TD = positions(vision.embeddings, convolution, spec)
            self.last_norm = vision.layernorm
        except AttributeError as error:
            raise UnfitTowerError(f"does not know a vision tower of another structure ({error})") from error
        self.patch = int(convolution.kernel_size[0])
        self.patches, shift_D = fold(convolution, spec)
        start_TD[1:] += shift_D
        self.start_TD = nn.Parameter(start_TD, requires_grad=False)
        self.first_norm, self.projection = nn.Identity(), nn.Identity()
        self.layers = nn.Sequential(*map(Layer, layers[:-1]), LastLayer(layers[-1]))


def positions(embeddings: Any, convolution: Any, spec: PreprocessSpec) -> torch.Tensor:
    """What tokens start from besides their pixels, (T, D): positions for this size of image, and the class token."""
    grid = [side // kernel for side, kernel in zip(spec.crop, convolution.kernel_size, strict=True)]
    class_D = embeddings.cls_token.detach()[0, 0]
    tokens_1TD = class_D.new_zeros(1, 1 + grid[0] * grid[1], len(class_D))
    start_TD = embeddings.interpolate_pos_encoding(tokens_1TD, *spec.crop).detach()[0].clone()
    start_TD[0] += class_D
    return start_TD


def as_clip(layer: Any) -> SimpleNamespace:
    """A Dinov2Layer under the names of CLIP's, its branches' scales in the weights of their last products."""
    attention, mlp = layer.attention, layer.mlp
    return SimpleNamespace(
        self_attn=SimpleNamespace(
            num_heads=attention.num_attention_heads,
            q_proj=attention.q_proj,
            k_proj=attention.k_proj,
            v_proj=attention.v_proj,
            out_proj=branch(attention.o_proj, layer.layer_scale1),
        ),
        layer_norm1=layer.norm1,
        layer_norm2=layer.norm2,
        mlp=SimpleNamespace(fc1=mlp.fc1, fc2=branch(mlp.fc2, layer.layer_scale2), activation_fn=mlp.activation_fn),
    )


def branch(last: nn.Linear, scale: Any) -> nn.Linear:
    """The last product of a branch with the branch's scale in it."""
    scale_D = scale.lambda1.detach()
    return linear(last.weight * scale_D[:, None], None if last.bias is None else last.bias * scale_D)
