"""The network for images as it will run: merged, cast, compiled, and then checked against the unmerged model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from lora_clip.errors import AdapterError, ModelError
from lora_clip.models.adapter_kinds import AdapterSummary
from lora_clip.models.adapters import check_towers
from lora_clip.models.checkpoint import Checkpoint
from lora_clip.models.compute import Compute, dtype_name
from lora_clip.models.encoder import ImageEncoder
from lora_clip.models.generic import Family, PlainTower, UnfitTowerError
from lora_clip.models.merging import Bases, load_merged
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
from lora_clip.types import PreprocessSpec


@dataclass(frozen=True)
class LoadedImages:
    """The network that embeds images, what its adapter is, and what a user may want to know of how it runs."""

    encoder: ImageEncoder
    width: int
    adapter: AdapterSummary | None
    proof: Proof | None
    note: str | None = None


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
        raise disagreement(checkpoint, compute, str(error)) from error


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
    vision, expected_ND, adapter = load_merged(family, checkpoint, spec, pixels_NCHW.to(compute.device), bases)
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
        raise ModelError(f"the model cannot be compiled here ({found}). model.compile=false does without") from error


def disagreement(checkpoint: Checkpoint, compute: Compute, found: str) -> ModelError:
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
