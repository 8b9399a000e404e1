"""Adapters under the module names of older versions of transformers, which it has since given to attention anew.

DINOv2's `attention.attention.query` and `attention.output.dense` are `attention.q_proj` and `attention.o_proj` today.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lora_clip.models.adapter_kinds import adapted_modules

if TYPE_CHECKING:
    from peft import PeftConfig

OLD = re.compile(r"\battention\.(?:attention\.(query|key|value)|output\.(dense))\b")
RENAMED = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "dense": "o_proj"}
SAID = re.compile(r"(?:attention\\?\.)?\b(query|key|value)\b|(?:output\\?\.)?\b(dense)\b")
"""The same in a config, whose names may be shorter."""
NAMING = ("target_modules", "exclude_modules", "modules_to_save", "rank_pattern", "alpha_pattern")
"""What names modules in a config."""


def as_today(
    tower: nn.Module, config: PeftConfig, weights: Mapping[str, torch.Tensor]
) -> tuple[PeftConfig, dict[str, torch.Tensor]]:
    """The config and the weights under the names of the loaded tower's modules; as they are where those are the old."""
    if _has_old(name for name, _ in tower.named_modules()) or not _has_old(weights):
        return config, dict(weights)
    today = {OLD.sub(lambda old: f"attention.{RENAMED[old[1] or old[2]]}", name): weights[name] for name in weights}
    settings: Any = config
    for naming in NAMING:
        if said := getattr(settings, naming, None):
            setattr(settings, naming, _said_today(said))
    if isinstance(settings.target_modules, str) and settings.target_modules != "all-linear":
        settings.target_modules = adapted_modules(today, config)  # a pattern: what it meant is in the file
    return config, today


def _has_old(names: Iterable[str]) -> bool:
    return any(OLD.search(name) for name in names)


def _said_today(said: Any) -> Any:
    """A name, a pattern, or some of them, under today's names."""
    if isinstance(said, str):
        return SAID.sub(lambda old: RENAMED[old[1] or old[2]], said)
    if isinstance(said, dict):
        return {_said_today(name): value for name, value in said.items()}
    return type(said)(_said_today(name) for name in said)
