"""A vision tower in float32 that takes adapters into its weights, and what the unmerged model makes of images."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lora_clip.errors import AdapterError, ModelError
from lora_clip.models.adapter_kinds import USE_BASE, AdapterSummary, peft_at_work
from lora_clip.models.adapter_sums import merge_sum, summary_of_sum
from lora_clip.models.adapters import attach, merge
from lora_clip.models.checkpoint import Checkpoint, Part
from lora_clip.models.encoder import ImageEncoder
from lora_clip.models.generic import Family, PlainTower
from lora_clip.models.proof import PROBE_IMAGES, least_cosine, lowest_cosine, probe
from lora_clip.types import PreprocessSpec


class Bases:
    """Base towers in float32, each read and checked once for all the adapters of a pass that go onto it."""

    def __init__(self, keep: bool = False) -> None:
        self.keep = keep
        self._kept: dict[Path, tuple[nn.Module, torch.Tensor]] = {}

    def load(
        self, family: Family, checkpoint: Checkpoint, spec: PreprocessSpec, device: torch.device
    ) -> tuple[nn.Module, torch.Tensor]:
        """A tower of one's own to put an adapter onto, and what the base alone makes of the probe, (B, D)."""
        if (found := self._kept.get(checkpoint.base_folder)) is None:
            vision = family.load_vision(checkpoint.base_folder).to(device)
            _check_size(family, vision, checkpoint, spec)
            found = vision, _embed(ImageEncoder(PlainTower(family, vision, spec)), probe(spec, device))
            if not self.keep:
                return found
            self._kept[checkpoint.base_folder] = found
        return copy.deepcopy(found[0]), found[1]


def load_merged(
    family: Family, checkpoint: Checkpoint, spec: PreprocessSpec, pixels_NCHW: torch.Tensor, bases: Bases
) -> tuple[nn.Module, torch.Tensor, AdapterSummary | None]:
    """A vision tower with the adapter in its weights, and what the unmerged model made of the images, (N, D).

    The first of them are the probe.
    """
    vision, base_BD = bases.load(family, checkpoint, spec, pixels_NCHW.device)
    merging = _Merging(family, vision, ImageEncoder(PlainTower(family, vision, spec)), pixels_NCHW, base_BD)
    if checkpoint.is_sum:
        return vision, *merging.merge_sum(checkpoint.parts)
    if checkpoint.adapter_folder is None:
        return vision, _embed(merging.reference, pixels_NCHW), None
    return vision, *merging.merge(checkpoint.adapter_folder, pixels_NCHW)


@dataclass(frozen=True)
class _Merging:
    """A vision tower that takes adapters into its weights, and the plain network around it that shows what they do."""

    family: Family
    vision: nn.Module
    reference: ImageEncoder
    pixels_NCHW: torch.Tensor
    base_BD: torch.Tensor

    def merge(self, folder: Path, pixels_NCHW: torch.Tensor) -> tuple[torch.Tensor, AdapterSummary]:
        """Merge an adapter; returns what the unmerged model made of images, (N, D), and what the adapter is."""
        model, summary = attach(self.family, self.vision, folder)
        with peft_at_work(f"adapter {folder} cannot run"):
            adapted_ND = _embed(self.reference, pixels_NCHW)
        if torch.equal(self.base_BD, adapted_ND[:PROBE_IMAGES]):
            raise AdapterError(
                f"adapter {folder} changes nothing: with its {summary.layers} layers the embeddings are the base "
                f"model's, bit for bit (was it saved before training?). {USE_BASE}"
            )
        merge(model, folder)
        return adapted_ND, summary

    def merge_sum(self, parts: Sequence[Part]) -> tuple[torch.Tensor, AdapterSummary]:
        """Merge a weighted sum; returns what the sum in float32 makes of the images, (N, D), and what its adapters are.

        Each adapter is compared with its unmerged model on the way: a sum has no unmerged form.
        """
        summaries: list[AdapterSummary] = []

        def merge_one(folder: Path) -> None:
            adapted_BD, summary = self.merge(folder, self.pixels_NCHW[:PROBE_IMAGES])
            cosine = lowest_cosine(adapted_BD, _embed(self.reference, self.pixels_NCHW[:PROBE_IMAGES]))
            if not cosine >= (least := least_cosine(torch.float32)):
                raise AdapterError(
                    f"adapter {folder}, merged, differs from the unmerged model (cosine {cosine:.6f}, at least {least} "
                    "is expected): it cannot be part of a sum"
                )
            summaries.append(summary)

        merge_sum(self.vision, parts, merge_one)
        summed_ND = _embed(self.reference, self.pixels_NCHW)
        if torch.equal(self.base_BD, summed_ND[:PROBE_IMAGES]):
            raise AdapterError(f"the sum of adapters changes nothing: are its weights all 0? {USE_BASE}")
        return summed_ND, summary_of_sum(summaries)


@torch.inference_mode()
def _embed(encoder: ImageEncoder, pixels_NCHW: torch.Tensor) -> torch.Tensor:
    # the probe by itself: what two models make of it is compared bit by bit, and its neighbours might show there
    probe_and_own = (pixels_NCHW[:PROBE_IMAGES], pixels_NCHW[PROBE_IMAGES:])
    return torch.cat([encoder(pixels_BCHW) for pixels_BCHW in probe_and_own if len(pixels_BCHW)])


def _check_size(family: Family, vision: nn.Module, checkpoint: Checkpoint, spec: PreprocessSpec) -> None:
    """Raises ModelError where the tower does not take the images that the preprocessor makes."""
    config: Any = vision.config
    size = getattr(getattr(config, "vision_config", config), "image_size", None)
    takes = (size, size) if isinstance(size, int) else size and tuple(size)
    if not family.any_size and takes and takes != spec.crop:
        raise ModelError(
            f"base {checkpoint.base}: its preprocessor makes images of {spec.crop} pixels, "
            f"its vision tower takes {takes}"
        )
