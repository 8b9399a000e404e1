"""LoRA that PEFT put onto open_clip's transformers, or timm's in its SigLIPs, under the names of transformers' towers.

open_clip keeps queries, keys and values in one matrix, `attn.in_proj_weight` (timm: `attn.qkv`), of which PEFT adapts
all three at once; transformers has a module for each. The same change in three parts: A is common, B is split.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lora_clip.errors import AdapterError
from lora_clip.models.adapter_kinds import MERGE_YOURSELF, kind_of
from lora_clip.models.adapter_layout import PREFIX

if TYPE_CHECKING:
    from peft import PeftConfig

BLOCK = re.compile(
    r"(?P<within>.*?(?=resblocks\.)|(?:.*\btrunk\.)?)(?:res)?blocks\."  # of its own towers, of timm's in `trunk`
    r"(?P<layer>\d+)\.(?P<module>.+)\.(?P<matrix>lora_[AB])\.weight"
)
MODULES = {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2", "attn.base_layer.out_proj": "self_attn.out_proj"}
MODULES |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2", "attn.proj": "self_attn.out_proj"}  # timm's
TOGETHER = ("attn", "attn.qkv")
"""Queries, keys and values at once."""
TWICE = "attn.base_layer.out_proj"
"""PEFT adds this change twice, in training, unmerged and merged alike: its MultiheadAttention merges it, and then lets
the layer merge it too."""
WITHOUT_EFFECT = "attn.out_proj"
"""Torch's attention takes the weight of `out_proj` past PEFT's layer, so there the unmerged model has no change."""
PLAIN_STARTS = (True, False, "gaussian")
"""Ways to start LoRA that leave the base's weights as they are."""


def is_of_open_clip(weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether weights are named after open_clip's blocks."""
    return any(BLOCK.match(name.removeprefix(PREFIX)) for name in weights)


def as_transformers(
    config: PeftConfig, weights: Mapping[str, torch.Tensor], folder: Path
) -> tuple[PeftConfig, dict[str, torch.Tensor]]:
    """The config and the weights under transformers' names. Raises AdapterError for what cannot be renamed."""
    _check_plain(config, folder)
    whole = any(name.startswith(f"{PREFIX}visual.") for name in weights)
    renamed: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        found = BLOCK.fullmatch(name.removeprefix(PREFIX))
        if found is None or (modules := _modules(found["module"], found["matrix"], weight)) is None:
            raise AdapterError(
                f"adapter {folder} is of an open_clip model, and {name} has no counterpart in transformers: "
                f"{MERGE_YOURSELF}"
            )
        tower = _tower(found["within"], whole)
        for module, matrix in modules:
            renamed[f"{PREFIX}{tower}encoder.layers.{found['layer']}.{module}.{found['matrix']}.weight"] = matrix
    settings: Any = config
    settings.target_modules = {name.removeprefix(PREFIX).partition(".lora_")[0] for name in renamed}
    settings.layers_to_transform = settings.layers_pattern = settings.exclude_modules = None
    return config, renamed


def _check_plain(config: PeftConfig, folder: Path) -> None:
    """Raises AdapterError for settings that name open_clip's modules, or start from a changed base."""
    settings: Any = config
    named = ("rank_pattern", "alpha_pattern", "modules_to_save", "use_dora", "lora_bias", "target_parameters")
    used = [name for name in named if getattr(settings, name, None)]
    plain = kind_of(config) == "LORA" and settings.bias == "none" and settings.init_lora_weights in PLAIN_STARTS
    if used or not plain:
        what = ", ".join(used) or "another kind or another start than LoRA's own"
        raise AdapterError(f"adapter {folder} is of an open_clip model, with {what}: {MERGE_YOURSELF}")


def _tower(within: str, whole: bool) -> str:
    """The tower of a block: what lies beside `visual.` in a whole model is text."""
    if not whole:
        return ""
    return "vision_model." if within.startswith("visual.") else "text_model."


def _modules(module: str, matrix: str, weight: torch.Tensor) -> list[tuple[str, torch.Tensor]] | None:
    """The modules that a block's weight becomes one of, with what each takes of it; None for one that is not known."""
    if module == WITHOUT_EFFECT:
        return []
    if module in TOGETHER:
        return list(_split(matrix, weight))
    times = 2 if (module, matrix) == (TWICE, "lora_B") else 1
    return [(MODULES[module], times * weight)] if module in MODULES else None


def _split(matrix: str, weight: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    each = weight.chunk(3) if matrix == "lora_B" else (weight,) * 3
    for name, one in zip("qkv", each, strict=True):
        yield f"self_attn.{name}_proj", one
