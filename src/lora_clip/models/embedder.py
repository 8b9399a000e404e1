"""Base + adapter as one embedder: loaded in float32, merged, cast, compiled, and then checked against the unmerged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional

from lora_clip.errors import AdapterError, ModelError
from lora_clip.models.adapter_kinds import USE_BASE, AdapterSummary, peft_at_work
from lora_clip.models.adapter_sums import merge_sum, summary_of_sum
from lora_clip.models.adapters import attach, check_towers, merge
from lora_clip.models.base import find_family
from lora_clip.models.checkpoint import Checkpoint, Part
from lora_clip.models.compute import Compute
from lora_clip.models.encoder import ImageEncoder, least_cosine, lowest_cosine, probe
from lora_clip.models.generic import Family, PlainTower, UnfitTowerError
from lora_clip.models.text import PROBE_TEXTS, CaptionEncoder, TextEncoder
from lora_clip.types import PreprocessSpec


class MergedEmbedder:
    """The Embedder of a checkpoint; each tower is loaded, merged and checked when it is first needed.

    Never the base model in place of the adapted one: loading raises ModelError or AdapterError.
    """

    def __init__(self, checkpoint: Checkpoint, compute: Compute | None = None) -> None:
        self.checkpoint, self.compute = checkpoint, compute or Compute()
        self.family = find_family(checkpoint.base_folder)
        self.spec: PreprocessSpec = self.family.load_spec(checkpoint.base_folder)

    def load(self, captions: bool = False) -> Self:
        """Load the vision tower now, not with the first images, and one for captions. Raises Model- or AdapterError."""
        assert self.images.width
        assert not captions or self.captions.encoder
        return self

    @cached_property
    def images(self) -> LoadedImages:
        """The vision tower, ready to run."""
        return load_images(self.family, self.checkpoint, self.spec, self.compute)

    @cached_property
    def texts(self) -> TextEncoder | None:
        """The text tower with its tokenizer; None where the checkpoint has none."""
        base, adapter = self.checkpoint.base_folder, self.checkpoint.adapter_folder
        check_towers(self.family, self.checkpoint)
        return TextEncoder(self.family, base, adapter, self.checkpoint.parts) if self.family.has_text(base) else None

    @cached_property
    def captions(self) -> LoadedTexts:
        """The text tower as a job runs it on captions. Raises ModelError or AdapterError."""
        return load_captions(self.family, self.checkpoint, self.compute, self.width)

    @property
    def width(self) -> int:
        """The width D of an embedding."""
        return self.images.width

    def embed_images(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D) of uint8 pixels (B, C, H, W), float32, of unit L2 norm."""
        return self.images.encoder(pixels_BCHW)

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor | None:
        """Embeddings (N, D) of texts, float32, of unit L2 norm; None where the model has no text tower."""
        return None if self.texts is None else self.texts(texts)


@dataclass(frozen=True)
class LoadedImages:
    """The network that embeds images, what its adapter is, and what a user may want to know of how it runs."""

    encoder: ImageEncoder
    width: int
    adapter: AdapterSummary | None
    note: str | None = None


@dataclass(frozen=True)
class LoadedTexts:
    """The text tower that embeds captions, and what a user may want to know of how it runs."""

    encoder: CaptionEncoder
    note: str | None = None


def load_captions(family: Family, checkpoint: Checkpoint, compute: Compute, width: int) -> LoadedTexts:
    """The text tower merged and cast; in float32 where it then differs from the unmerged model on the CPU.

    Raises ModelError or AdapterError, also where it differs in float32 too, or is not as wide as the images are.
    """
    base, adapter = checkpoint.base_folder, checkpoint.adapter_folder
    for dtype in dict.fromkeys([compute.dtype, torch.float32]):
        unmerged = TextEncoder(family, base, adapter, checkpoint.parts)  # from the files again: a cast loses digits
        expected_BD, tokenizer, context = unmerged(PROBE_TEXTS), unmerged.tokenizer, unmerged.context
        if expected_BD.shape[1] != width:
            raise ModelError(
                f"base {checkpoint.base}: its embeddings of texts are {expected_BD.shape[1]} wide, those of images "
                f"{width}, so they cannot be compared. embed=image embeds the images alone"
            )
        encoder = CaptionEncoder(family, unmerged.merged(), tokenizer, context, replace(compute, dtype=dtype))
        cosine = float(functional.cosine_similarity(expected_BD, encoder(PROBE_TEXTS).cpu()).min())
        if cosine >= least_cosine(dtype):
            wanted = str(compute.dtype).removeprefix("torch.")
            note = f"the text tower computes in float32, since it differs too much in {wanted}"
            return LoadedTexts(encoder, None if dtype == compute.dtype else note)
    found = f"differs from the unmerged model (cosine {cosine:.6f}, at least {least_cosine(dtype)} is expected)"
    raise _disagreement(checkpoint, replace(compute, compile=False, dtype=dtype), f"on captions {found}")


def load_images(family: Family, checkpoint: Checkpoint, spec: PreprocessSpec, compute: Compute) -> LoadedImages:
    """The network for images: the family's accelerator where it agrees with transformers' model, else that model.

    Raises ModelError or AdapterError, also where the network that would run differs from the unmerged model.
    """
    noted = check_towers(family, checkpoint)
    loaded = _load_images(family, checkpoint, spec, compute)
    return replace(loaded, note="; ".join(filter(None, (loaded.note, noted))) or None)


def _load_images(family: Family, checkpoint: Checkpoint, spec: PreprocessSpec, compute: Compute) -> LoadedImages:
    note = family.note
    if family.accelerator is not None:
        try:
            return _build(family.accelerator, family, checkpoint, spec, compute)
        except UnfitTowerError as error:
            note = f"the fast {family.name} tower {error}: transformers' own model runs in its place, more slowly"
    try:
        # from the files again: an accelerator takes weights over and casts them
        return replace(_build(partial(PlainTower, family), family, checkpoint, spec, compute), note=note)
    except UnfitTowerError as error:
        raise _disagreement(checkpoint, compute, str(error)) from error


def _build(
    tower: Callable[[nn.Module, PreprocessSpec], nn.Module],
    family: Family,
    checkpoint: Checkpoint,
    spec: PreprocessSpec,
    compute: Compute,
) -> LoadedImages:
    """The network with `tower` made of the merged weights. Raises UnfitTowerError where it differs from transformers'.

    What is checked is what will run: after the merge, the cast and the compilation, at the batch's shape.
    """
    vision, expected_BD, adapter = _load_merged(family, checkpoint, spec, compute.device)
    encoder = ImageEncoder(tower(vision, spec)).prepare(compute)
    with _compiler():
        cosine, least = lowest_cosine(expected_BD, encoder, compute, spec), least_cosine(compute.dtype)
    if not cosine >= least:  # nor is NaN
        raise UnfitTowerError(f"differs from the unmerged model (cosine {cosine:.6f}, at least {least} is expected)")
    return LoadedImages(encoder, expected_BD.shape[1], adapter)


@contextmanager
def _compiler() -> Iterator[None]:
    """torch.compile at work, which it is when a network first runs: what it cannot do becomes a ModelError."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        found = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise ModelError(
            f"model.compile=true: the model cannot be compiled here ({found}). model.compile=false does without"
        ) from error


def _load_merged(
    family: Family, checkpoint: Checkpoint, spec: PreprocessSpec, device: torch.device
) -> tuple[nn.Module, torch.Tensor, AdapterSummary | None]:
    """A vision tower with the adapter in its weights, and what the unmerged model made of the probe, (B, D)."""
    vision = family.load_vision(checkpoint.base_folder).to(device)
    _check_size(family, vision, checkpoint, spec)
    reference, probe_BCHW = ImageEncoder(PlainTower(family, vision, spec)), probe(spec, device)
    base_BD = _embed(reference, probe_BCHW)
    merging = _Merging(family, vision, reference, probe_BCHW, base_BD)
    if checkpoint.is_sum:
        return vision, *merging.merge_sum(checkpoint.parts)
    if checkpoint.adapter_folder is None:
        return vision, base_BD, None
    return vision, *merging.merge(checkpoint.adapter_folder)


@dataclass(frozen=True)
class _Merging:
    """A vision tower that takes adapters into its weights, and the plain network around it that shows what they do."""

    family: Family
    vision: nn.Module
    reference: ImageEncoder
    probe_BCHW: torch.Tensor
    base_BD: torch.Tensor

    def merge(self, folder: Path) -> tuple[torch.Tensor, AdapterSummary]:
        """Merge an adapter; returns what the unmerged model made of the probe, (B, D), and what the adapter is."""
        model, summary = attach(self.family, self.vision, folder)
        with peft_at_work(f"adapter {folder} cannot run"):
            adapted_BD = _embed(self.reference, self.probe_BCHW)
        if torch.equal(self.base_BD, adapted_BD):
            raise AdapterError(
                f"adapter {folder} changes nothing: with its {summary.layers} layers the embeddings are the base "
                f"model's, bit for bit (was it saved before training?). {USE_BASE}"
            )
        merge(model, folder)
        return adapted_BD, summary

    def merge_sum(self, parts: Sequence[Part]) -> tuple[torch.Tensor, AdapterSummary]:
        """Merge a weighted sum; returns what the sum in float32 makes of the probe, (B, D), and what its adapters are.

        Each adapter is compared with its unmerged model on the way: a sum has no unmerged form.
        """
        summaries: list[AdapterSummary] = []

        def merge_one(folder: Path) -> None:
            adapted_BD, summary = self.merge(folder)
            cosine = float(functional.cosine_similarity(adapted_BD, _embed(self.reference, self.probe_BCHW)).min())
            if not cosine >= (least := least_cosine(torch.float32)):
                raise AdapterError(
                    f"adapter {folder}, merged, differs from the unmerged model (cosine {cosine:.6f}, at least {least} "
                    "is expected): it cannot be part of a sum"
                )
            summaries.append(summary)

        merge_sum(self.vision, parts, merge_one)
        summed_BD = _embed(self.reference, self.probe_BCHW)
        if torch.equal(self.base_BD, summed_BD):
            raise AdapterError(f"the sum of adapters changes nothing: are its weights all 0? {USE_BASE}")
        return summed_BD, summary_of_sum(summaries)


@torch.inference_mode()
def _embed(encoder: ImageEncoder, pixels_BCHW: torch.Tensor) -> torch.Tensor:
    return encoder(pixels_BCHW)


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


def _disagreement(checkpoint: Checkpoint, compute: Compute, found: str) -> ModelError:
    """The network that would run is not the model that was asked for: what was found, and what to type."""
    adapter = checkpoint.adapter_folder or checkpoint.adapter
    kind, whose = (ModelError, f"base {checkpoint.base}") if adapter is None else (AdapterError, f"adapter {adapter}")
    if compute.compile:
        advice = "model.compile=false does without torch.compile"
    elif compute.dtype != torch.float32:
        advice = "model.dtype=float32 computes exactly"
    else:
        advice = f"pip install -U torch transformers{'' if adapter is None else ' peft'}, or report this"
    dtype = str(compute.dtype).removeprefix("torch.")
    return kind(f"{whose}: what would run in {dtype} {found}. {advice}")
