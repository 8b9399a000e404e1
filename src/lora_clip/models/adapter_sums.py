"""Weighted sums of adapters: a base's weights W and what each adapter changes of them, W + w1 d1 + w2 d2 + ..."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from lora_clip.models.adapter_kinds import AdapterSummary
from lora_clip.models.checkpoint import Part


def merge_sum(tower: nn.Module, parts: Sequence[Part], merge_one: Callable[[Path], None]) -> None:
    """Put a weighted sum of adapters into a tower's weights, in place.

    `merge_one` writes the adapter of a folder into the tower. Whatever its kind, its change is the difference that this
    makes, so biases and whole modules that it brings are in the sum too.
    """
    # clones: they must outlast what merging writes in place
    before = {name: weight.clone() for name, weight in tower.state_dict().items()}
    changes: dict[str, torch.Tensor] = {}
    for part in parts:
        merge_one(part.folder)
        for name, change in _changes(before, tower):
            changes[name] = changes.get(name, torch.zeros_like(change)) + part.weight * change
        _restore(tower, before)
    with torch.no_grad():
        for name, change in changes.items():
            weight = before[name]
            before[name] = (weight.cpu().double() + change).to(weight)
    _restore(tower, before)


def _changes(before: dict[str, torch.Tensor], tower: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What differs now, by name, float64 on the CPU: the order of a sum does not show in float32 then."""
    for name, weight in tower.state_dict().items():
        if not torch.equal(weight, before[name]):
            yield name, weight.detach().cpu().double() - before[name].detach().cpu().double()


def _restore(tower: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    tower.load_state_dict({name: weight.clone() for name, weight in weights.items()}, assign=True)


def summary_of_sum(summaries: Sequence[AdapterSummary]) -> AdapterSummary:
    """What the adapters of a sum are together: their kinds and ranks, and the most layers that one of them touches."""
    kinds, ranks = ([*dict.fromkeys(getattr(one, name) for one in summaries)] for name in ("kind", "rank"))
    return AdapterSummary(" and ".join(kinds), "/".join(filter(None, ranks)), max(one.layers for one in summaries))
