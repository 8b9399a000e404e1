"""How close each dtype comes to the unmerged network in float32, on photographs: raw, and with their mean taken off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.nn import functional

from lora_clip.benchmark.gpu import material
from lora_clip.benchmark.gpu.findings import Figure, Findings
from lora_clip.benchmark.gpu.sizes import Settings
from lora_clip.benchmark.gpu.timing import free
from lora_clip.models.base import find_family
from lora_clip.models.checkpoint import Checkpoint, find_checkpoint
from lora_clip.models.compute import DTYPES, Compute
from lora_clip.models.embedder import MergedEmbedder
from lora_clip.models.merging import Bases, load_merged
from lora_clip.models.proof import PROBE_IMAGES, probe, run_as_it_will
from lora_clip.pixels.decode import prepare
from lora_clip.types import PreprocessSpec

CPU = torch.device("cpu")
BY_DEFAULT = "unmerged, TF32 in its convolution"
"""PyTorch's default on a GPU, and so what a job's own proof compares with."""


def measure(settings: Settings, findings: Findings) -> None:
    """Tell the lowest cosines of the network that runs, for each model and dtype."""
    for name, checkpoint in _checkpoints(settings):
        spec = find_family(checkpoint.base_folder).load_spec(checkpoint.base_folder)
        pixels_NCHW = torch.cat([probe(spec, CPU), _photographs(settings, spec)])
        with _exact_products():
            expected_ND = _unmerged(checkpoint, spec, pixels_NCHW, settings.device)
        if settings.device.type == "cuda":
            found_ND = _unmerged(checkpoint, spec, pixels_NCHW, settings.device)
            _tell(findings, expected_ND, found_ND, model=name, dtype=BY_DEFAULT)
        for dtype in DTYPES:
            _measure(findings, settings, checkpoint, pixels_NCHW, expected_ND, model=name, dtype=dtype)


def _measure(
    findings: Findings, settings: Settings, checkpoint: Checkpoint, pixels_NCHW: torch.Tensor,
    expected_ND: torch.Tensor, **of: str,
) -> None:  # fmt: skip
    """One dtype, by the network that a job would run; one that a job refuses is told with its reason."""
    compute = Compute(DTYPES[of["dtype"]], settings.device, settings.sizes.batches[0])
    try:
        images = MergedEmbedder(checkpoint, compute).load().images
        found_MD = run_as_it_will(images.encoder, pixels_NCHW, compute)
    except Exception as error:
        findings.fail(error, **of)
    else:
        _tell(findings, expected_ND, found_MD[: len(expected_ND)], images.note or "", **of)
    free()


def _checkpoints(settings: Settings) -> Iterator[tuple[str, Checkpoint]]:
    """The user's own model, or both of random weights."""
    if settings.base or settings.adapter:
        yield Path(settings.adapter or str(settings.base)).name, find_checkpoint(settings.base, settings.adapter)
        return
    for name in (settings.sizes.small, settings.sizes.large):
        yield name, find_checkpoint(*map(str, material.model(settings, name)))


def _photographs(settings: Settings, spec: PreprocessSpec) -> torch.Tensor:
    pixels_NCHW = torch.empty((settings.sizes.proven, 3, *spec.crop), dtype=torch.uint8)
    for data, out_CHW in zip(material.photographs(settings, settings.sizes.proven), pixels_NCHW, strict=True):
        prepare(data, spec, out_CHW)
    return pixels_NCHW


@contextmanager
def _exact_products() -> Iterator[None]:
    """Without TF32, in which PyTorch computes float32's convolutions on a GPU, and so the unmerged model's patches."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _unmerged(
    checkpoint: Checkpoint, spec: PreprocessSpec, pixels_NCHW: torch.Tensor, device: torch.device
) -> torch.Tensor:
    """What the unmerged model in float32 makes of images, (N, D)."""
    family = find_family(checkpoint.base_folder)
    _, expected_ND, _ = load_merged(family, checkpoint, spec, pixels_NCHW.to(device), Bases())
    free()
    return expected_ND.clone()


def _tell(findings: Findings, expected_ND: torch.Tensor, found_ND: torch.Tensor, more: str = "", **of: str) -> None:
    """The lowest cosine of the photographs, as they are and centred."""
    own_ND, other_ND = (one[PROBE_IMAGES:].double().cpu() for one in (expected_ND, found_ND))
    mean_D = own_ND.mean(dim=0)
    pairs: Sequence[tuple[str, torch.Tensor, torch.Tensor]] = (
        ("raw", own_ND, other_ND), ("centred", own_ND - mean_D, other_ND - mean_D),
    )  # fmt: skip
    for kind, one_ND, two_ND in pairs:
        cosine_N = functional.cosine_similarity(one_ND, two_ND)
        note = f"the lowest of {len(cosine_N)} photographs; mean {float(cosine_N.mean()):.6f}{more and '; ' + more}"
        findings.add(Figure(round(float(cosine_N.min()), 6), "cosine", note), **of, kind=kind)
