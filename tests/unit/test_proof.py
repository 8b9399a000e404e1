"""How close the network that runs comes to float32 on images of the user's own: measured, told, and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers.images import jpeg, write_shards, write_tar
from helpers.models import (
    SPEC,
    centred_cosine,
    lowest_cosine,
    random_pixels,
    reference,
    save_adapter,
    save_base,
)
from lora_clip.diagnose.summary import describe_proof, proof_lines
from lora_clip.errors import ConfigError
from lora_clip.loading.first import first_images, first_of_each
from lora_clip.loading.plan import Inventory, make_plan, take_inventory
from lora_clip.models.checkpoint import find_checkpoint
from lora_clip.models.clip import Clip
from lora_clip.models.clip_tower import VisionTower
from lora_clip.models.compute import Compute, dtype_name, resolve_dtype
from lora_clip.models.embedder import MergedEmbedder
from lora_clip.models.merging import Bases
from lora_clip.models.proof import ENOUGH, Proof, prove
from lora_clip.output.notes import RunNotes, add_notes, lowest_proof, read_notes
from lora_clip.sources.tar import TarSource
from lora_clip.types import UNCOUNTED, WorkRange

OWN_NCHW = random_pixels(ENOUGH, seed=5)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    return save_adapter(base.parent / "adapter", base)


def embedder_of(base: Path, adapter: Any, dtype: torch.dtype = torch.float32, batch_size: int = 4) -> MergedEmbedder:
    return MergedEmbedder(find_checkpoint(str(base), adapter), Compute(dtype, batch_size=batch_size))


def proof_of(embedder: MergedEmbedder, own_NCHW: torch.Tensor | None = OWN_NCHW) -> Proof | None:
    return embedder.load(own_NCHW=own_NCHW).images.proof


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("batch_size", [4, 64])
def test_the_figures_are_those_of_the_network_that_runs(
    base: Path, adapter: Path, dtype: torch.dtype, batch_size: int
) -> None:
    embedder = embedder_of(base, str(adapter), dtype, batch_size)
    proof = proof_of(embedder)
    with torch.inference_mode():
        found_ND = embedder.embed_images(OWN_NCHW)
    expected_ND = reference(base, adapter, "CLIPModel", OWN_NCHW)
    assert proof is not None and proof.centred is not None
    assert (proof.images, proof.reference) == (ENOUGH, "unmerged")
    assert proof.cosine == pytest.approx(lowest_cosine(found_ND, expected_ND), abs=1e-6)
    assert proof.centred == pytest.approx(centred_cosine(expected_ND, found_ND), abs=1e-5)
    assert proof.cosine >= 0.9999 and proof.centred >= 0.999


def test_a_network_that_is_wrong_on_the_users_images_alone_shows(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise decides whether a network may run; what it makes of the user's images is told."""
    forward = VisionTower.forward

    def worse_on_smooth(self: VisionTower, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        rough_B = pixels_BCHW.float().diff(dim=-1).abs().mean(dim=(1, 2, 3)) > 60
        embeddings_BD = forward(self, pixels_BCHW)
        return torch.where(rough_B[:, None], embeddings_BD, embeddings_BD.roll(1, dims=1))

    monkeypatch.setattr(VisionTower, "forward", worse_on_smooth)
    proof = proof_of(embedder_of(base, str(adapter), torch.bfloat16))
    assert proof is not None and proof.cosine < 0.9
    _, warning = proof_lines("", proof, torch.bfloat16)
    assert warning.startswith("WARNING") and "model.dtype=float32" in warning and "model.dtype=float16" in warning


@pytest.mark.parametrize(
    ("own_NCHW", "centred"),
    [(OWN_NCHW, True), (OWN_NCHW[: ENOUGH - 1], False), (OWN_NCHW[:8].repeat(2, 1, 1, 1), False)],
)
def test_centred_takes_enough_different_images(base: Path, own_NCHW: torch.Tensor, centred: bool) -> None:
    proof = proof_of(embedder_of(base, None), own_NCHW)
    assert proof is not None and proof.reference == "base"
    assert (proof.centred is not None) == centred and proof.images == len(own_NCHW)


@pytest.mark.parametrize("own_NCHW", [None, OWN_NCHW[:0]])
def test_without_images_there_is_no_proof(base: Path, own_NCHW: torch.Tensor | None) -> None:
    assert proof_of(embedder_of(base, None), own_NCHW) is None


def test_a_sum_is_compared_with_itself_in_float32(base: Path, adapter: Path) -> None:
    proof = proof_of(embedder_of(base, {str(adapter): 0.5}, torch.bfloat16))
    assert proof is not None and proof.reference == "merged" and proof.cosine > 0.999


def test_a_number_that_is_none_is_told() -> None:
    expected_ND = torch.eye(20)
    found_ND = expected_ND.clone()
    found_ND[5] = torch.nan
    proof = prove(random_pixels(20), expected_ND, found_ND, "unmerged")
    assert proof is not None and len(proof_lines("", proof, torch.float16)) == 2


def test_adapters_of_one_base_read_it_once(base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads, load = [], Clip.load_vision

    def counted(self: Clip, folder: Path) -> nn.Module:
        loads.append(folder)
        return load(self, folder)

    monkeypatch.setattr(Clip, "load_vision", counted)
    bases = Bases(keep=True)
    for own in (str(adapter), None, {str(adapter): 0.3}):
        alone, shared = (
            embedder_of(base, own).load(own_NCHW=OWN_NCHW),
            embedder_of(base, own).load(own_NCHW=OWN_NCHW, bases=bases),
        )
        with torch.inference_mode():
            assert torch.equal(alone.embed_images(OWN_NCHW), shared.embed_images(OWN_NCHW))
        assert alone.images.proof == shared.images.proof
    assert len(loads) == 3 + 1


@pytest.mark.parametrize(
    ("dtype", "cosine", "centred", "warned"),
    [
        (torch.float16, 0.9995, 0.9991, False),
        (torch.float16, 0.9989, 0.9991, True),
        (torch.int8, 0.9995, 0.9989, True),
        (torch.float32, 0.99985, None, True),
        (torch.float32, 0.99995, None, False),
    ],
)
def test_a_warning_below_the_bars(dtype: torch.dtype, cosine: float, centred: float | None, warned: bool) -> None:
    lines = proof_lines("first", Proof(16, "unmerged", cosine, centred), dtype)
    assert lines[0].startswith(f"proof of first: {dtype_name(dtype)} on 16 images of yours: cosine to the unmerged")
    assert f"{cosine:.6f}" in lines[0] and (len(lines) == 2) == warned


def test_the_lowest_figures_of_all_runs_are_kept(tmp_path: Path) -> None:
    notes = RunNotes("cpu", False, 1, 4)
    assert lowest_proof(tmp_path) is None
    for images, cosine, centred in ((16, 0.9997, 0.9995), (3, 0.9995, None), (16, 0.9999, 0.9993)):
        add_notes(tmp_path, notes, {"images": images, "reference": "unmerged", "cosine": cosine, "centred": centred})
    add_notes(tmp_path, notes)
    with (tmp_path / "runs.jsonl").open("a") as file:
        file.write(json.dumps({"device": "of a version without proofs"}) + "\ntorn")
    kept = lowest_proof(tmp_path)
    assert kept == {"images": 16, "reference": "unmerged", "cosine": 0.9995, "centred": 0.9993}
    assert "0.999500, centred 0.999300" in describe_proof(kept)
    assert read_notes(tmp_path) == [notes] * 4


@pytest.mark.parametrize("workers", [1, 2])
def test_first_images_are_of_the_input_and_rejects_are_left_out(tmp_path: Path, workers: int) -> None:
    pictures = {f"{number:03d}.jpg": jpeg(seed=number) for number in range(40)} | {"0005.jpg": b"no image"}
    write_tar(tmp_path / "0.tar", dict(sorted(pictures.items())))
    source = TarSource(str(tmp_path), None)
    plan = make_plan(take_inventory(source), {}, ranks=1, workers=workers, batch_size=4)
    pixels_NCHW = first_images(source, SPEC, plan, 16, "exact", 60)
    assert pixels_NCHW.shape == (15, 3, 32, 32), "one is no image"
    assert len(torch.unique(pixels_NCHW.flatten(1), dim=0)) == 15


def test_first_images_are_spread_over_the_input_as_far_as_it_is_counted() -> None:
    gaps = [WorkRange(0, 0, 3), WorkRange(1, 4, 6), WorkRange(2, 0, 9), WorkRange(3, 0, 9)]
    assert list(first_of_each(gaps, 2, 16)) == [WorkRange(0, 0, 3), WorkRange(1, 4, 6), WorkRange(2, 0, 8)]
    assert list(first_of_each(gaps, 9, 4)) == [WorkRange(id_, gap.start, gap.start + 1) for id_, gap in enumerate(gaps)]


def test_no_more_first_images_than_there_are() -> None:
    nothing = make_plan(Inventory([], {}), {}, ranks=2, workers=1, batch_size=4)
    assert len(first_images(TarSource("nowhere", None), SPEC, nothing, 16, "exact", 60)) == 0


def test_of_shards_that_nobody_has_counted_the_first_is(tmp_path: Path) -> None:
    write_shards(tmp_path, [5, 9])
    source = TarSource(str(tmp_path), None)
    listed = list(source.shards([]))
    plan = make_plan(Inventory(listed, dict.fromkeys((0, 1), UNCOUNTED)), {}, ranks=1, workers=2, batch_size=4)
    assert len(first_images(source, SPEC, plan, 16, "exact", 60)) == 5


def test_fp8_is_refused_where_the_device_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"fp8 is not for the device cpu: model\.dtype=auto"):
        resolve_dtype("fp8", "cpu")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(ConfigError, match=r"needs a GPU of compute capability 8\.9 or more .*this one has 8\.0"):
        resolve_dtype("fp8", "cuda")


def test_quantizing_needs_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_clip.extras.installed", lambda module: False)
    with pytest.raises(ConfigError, match=r"torchao is not installed: type .*lora-clip\[quantization\]"):
        resolve_dtype("int8", "cpu")


@pytest.mark.parametrize("fast", [True, False])
def test_int8_is_the_model_too(base: Path, adapter: Path, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchao")
    if not fast:
        monkeypatch.setattr(Clip, "accelerator", None)
    wide = save_base(base.parent / "wide", width=128, projection=64)
    proof = proof_of(embedder_of(wide, None, resolve_dtype("int8", "cpu"), batch_size=16))
    assert proof is not None and 0.999 < proof.cosine < 0.99999
