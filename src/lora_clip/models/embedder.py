"""Base + adapter as one embedder: loaded in float32, merged, cast, compiled, and then checked against the unmerged."""

from __future__ import annotations

import copy
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
from lora_clip.models.compute import Compute, dtype_name
from lora_clip.models.encoder import ImageEncoder
from lora_clip.models.generic import Family, PlainTower, UnfitTowerError
from lora_clip.models.proof import (
    BASE,
    MERGED,
    PROBE_IMAGES,
    UNMERGED,
    Proof,
    least_cosine,
    lowest_cosine,
    probe,
    prove,
    run_as_it_will,
)
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

    def load(self, captions: bool = False, own_NCHW: torch.Tensor | None = None, bases: Bases | None = None) -> Self:
        """Load the vision tower now, not with the first images, and one for captions. Raises Model- or AdapterError.

        `own_NCHW` are some of the user's images, uint8, to prove the network on; `bases` are shared by those of a pass.
        """
        self.images = load_images(self.family, self.checkpoint, self.spec, self.compute, own_NCHW, bases)
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


@dataclass(frozen=True)
class LoadedImages:
    """The network that embeds images, what its adapter is, and what a user may want to know of how it runs."""

    encoder: ImageEncoder
    width: int
    adapter: AdapterSummary | None
    proof: Proof | None
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
    for dtype in dict.fromkeys([compute.product_dtype, torch.float32]):
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
            wanted = compute.product_dtype
            note = f"the text tower computes in float32, since it differs too much in {dtype_name(wanted)}"
            return LoadedTexts(encoder, None if dtype == wanted else note)
    found = f"differs from the unmerged model (cosine {cosine:.6f}, at least {least_cosine(dtype)} is expected)"
    raise _disagreement(checkpoint, replace(compute, compile=False, dtype=dtype), f"on captions {found}")


def load_images(
    family: Family,
    checkpoint: Checkpoint,
    spec: PreprocessSpec,
    compute: Compute,
    own_NCHW: torch.Tensor | None = None,
    bases: Bases | None = None,
) -> LoadedImages:
    """The network for images: the family's accelerator where it agrees with transformers' model, else that model.

    Raises ModelError or AdapterError, also where the network that would run differs from the unmerged model.
    """
    noted = check_towers(family, checkpoint)
    loaded = _load_images(family, checkpoint, spec, compute, own_NCHW, bases or Bases())
    return replace(loaded, note="; ".join(filter(None, (loaded.note, noted))) or None)


def _load_images(
    family: Family,
    checkpoint: Checkpoint,
    spec: PreprocessSpec,
    compute: Compute,
    own_NCHW: torch.Tensor | None,
    bases: Bases,
) -> LoadedImages:
    build = partial(_build, family, checkpoint, spec, compute, own_NCHW, bases)
    notes = [] if family.note is None else [family.note]
    if family.accelerator is not None:
        try:
            return replace(build(family.accelerator), note=family.note)
        except UnfitTowerError as error:
            notes.append(
                f"the fast {family.name} tower {error}: transformers' own model runs in its place, more slowly"
            )
    try:
        # from the base again: an accelerator takes weights over and casts them
        return replace(build(partial(PlainTower, family)), note="; ".join(notes) or None)
    except UnfitTowerError as error:
        raise _disagreement(checkpoint, compute, str(error)) from error


def _build(
    family: Family,
    checkpoint: Checkpoint,
    spec: PreprocessSpec,
    compute: Compute,
    own_NCHW: torch.Tensor | None,
    bases: Bases,
    tower: Callable[[nn.Module, PreprocessSpec], nn.Module],
) -> LoadedImages:
    """The network with `tower` made of the merged weights. Raises UnfitTowerError where it differs from transformers'.

    What is checked is what will run: after the merge, the cast and the compilation, at the batch's shape. Noise alone
    decides: a run that goes on with other images than an earlier one must not be refused for what these tell.
    """
    pixels_NCHW = probe(spec, torch.device("cpu"))
    if own_NCHW is not None:
        pixels_NCHW = torch.cat([pixels_NCHW, own_NCHW])
    vision, expected_ND, adapter = _load_merged(family, checkpoint, spec, pixels_NCHW.to(compute.device), bases)
    encoder = ImageEncoder(tower(vision, spec)).prepare(compute)
    with _compiler():
        found_MD = run_as_it_will(encoder, pixels_NCHW, compute)
    cosine, least = lowest_cosine(expected_ND, found_MD, slice(0, PROBE_IMAGES)), least_cosine(compute.dtype)
    if not cosine >= least:  # nor is NaN
        raise UnfitTowerError(f"differs from the unmerged model (cosine {cosine:.6f}, at least {least} is expected)")
    reference = MERGED if checkpoint.is_sum else UNMERGED if checkpoint.adapters else BASE
    proof = prove(pixels_NCHW, expected_ND, found_MD, reference)
    return LoadedImages(encoder, expected_ND.shape[1], adapter, proof)


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
    return kind(f"{whose}: what would run in {dtype_name(compute.dtype)} {found}. {advice}")
