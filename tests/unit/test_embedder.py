"""What runs is checked as it runs: cast, compiled, at the batch's shape; and transformers' model is always there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from helpers.models import load_class, lowest_cosine, random_pixels, reference, save_adapter, save_base
from lora_clip.errors import AdapterError, ModelError
from lora_clip.models import encoder
from lora_clip.models.checkpoint import find_checkpoint
from lora_clip.models.clip import Clip
from lora_clip.models.clip_tower import VisionTower
from lora_clip.models.compute import CPU, Compute
from lora_clip.models.embedder import MergedEmbedder
from lora_clip.models.encoder import CHUNK, ImageEncoder
from lora_clip.models.generic import PlainTower

PIXELS_BCHW = random_pixels(20).contiguous()  # as the loader's are


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    return save_adapter(base.parent / "adapter", base)


def embedder_of(base: Path, adapter: Path | None = None, **compute: Any) -> MergedEmbedder:
    return MergedEmbedder(find_checkpoint(str(base), str(adapter) if adapter else None), Compute(**compute))


@torch.inference_mode()
def embed(embedder: MergedEmbedder) -> torch.Tensor:
    return embedder.embed_images(PIXELS_BCHW)


class Spoilt(VisionTower):
    """The tower, going wrong as the tests below want."""

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        return super().forward(pixels_BCHW).roll(1, dims=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_fast_tower_that_differs_makes_way_for_transformers(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(Clip, "accelerator", Spoilt)
    embedder = embedder_of(base, adapter, dtype=dtype, batch_size=20)
    assert lowest_cosine(embed(embedder), reference(base, adapter, "CLIPModel", PIXELS_BCHW)) >= 0.999
    assert isinstance(embedder.images.encoder.tower, PlainTower) and embedder.images.adapter is not None
    assert (embedder.images.note or "").startswith("the fast CLIP tower differs from the unmerged model (cosine ")


def overlapping_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    """CLIP in a form that transformers may have one day: patches of 8 pixels, but padded."""
    load = Clip.load_vision

    def changed(self: Clip, folder: Path) -> nn.Module:
        vision: Any = load(self, folder)
        vision.vision_model.embeddings.patch_embedding.padding = (1, 1)
        return vision

    monkeypatch.setattr(Clip, "load_vision", changed)


def other_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    load = Clip.load_vision

    def changed(self: Clip, folder: Path) -> nn.Module:
        vision: Any = load(self, folder)
        for layer in vision.vision_model.encoder.layers:
            layer.__class__ = type("CLIPDecoderLayer", (type(layer),), {})
        return vision

    monkeypatch.setattr(Clip, "load_vision", changed)


def renamed_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_clip.models.clip_tower.BUILT_OF", ("pre_layernorm",))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (overlapping_patches, "knows only patches that lie side by side"),
        (other_layers, "does not know layers of type CLIPDecoderLayer"),
        (renamed_norm, "does not know a vision tower without pre_layernorm"),
    ],
)
def test_a_model_that_the_fast_tower_does_not_know_runs_all_the_same(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch, change: Any, said: str
) -> None:
    change(monkeypatch)
    embedder = embedder_of(base, adapter)
    assert embed(embedder).shape == (20, 16) and isinstance(embedder.images.encoder.tower, PlainTower)
    assert said in (embedder.images.note or "") and "more slowly" in (embedder.images.note or "")


def coarse(self: PlainTower, dtype: torch.dtype) -> None:
    """A cast that loses more than a dtype may."""
    if dtype != torch.float32:
        for parameter in self.parameters():
            parameter.data = (parameter.data * 4).round() / 4
    self.vision.to(dtype)


def test_a_cast_that_loses_too_much_is_refused(base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Clip, "accelerator", None)
    monkeypatch.setattr(PlainTower, "cast", coarse)
    assert embed(embedder_of(base, adapter)).shape == (20, 16)
    with pytest.raises(AdapterError, match=r"bfloat16 differs .*at least 0\.999 is expected\)\. model\.dtype=float32"):
        embedder_of(base, adapter, dtype=torch.bfloat16).load()
    with pytest.raises(ModelError, match=r"base \S+: what would run in float16 differs .*model\.dtype=float32"):
        embedder_of(base, dtype=torch.float16).load()


@pytest.mark.slow
def test_compiled_code_is_what_runs_and_what_is_checked(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced whole, for the two shapes that a batch of 20 has on a CPU, before the first batch comes.

    One form serves all layers, and one the last, also of another adapter's model.
    """
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(encoder, "COMPILE", {**encoder.COMPILE, "backend": counter, "fullgraph": True})
    deep = save_base(base.parent / "deep", layers=5)
    expected_BD = embed(embedder_of(deep))
    embedder = embedder_of(deep, batch_size=20, compile=True).load()
    assert counter.frame_count == 2 * 2
    torch.testing.assert_close(embed(embedder), expected_BD, atol=1e-6, rtol=0)
    embedder_of(deep, save_adapter(base.parent / "of deep", deep), batch_size=20, compile=True).load()
    assert counter.frame_count == 2 * 2


@pytest.mark.slow
def test_a_compiler_that_errs_is_noticed(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        return lambda *given: [result.flip(-1) for result in graph(*given)]

    monkeypatch.setattr(encoder, "COMPILE", {"backend": wrong})
    with pytest.raises(ModelError, match=r"in float32 differs .*model\.compile=false"):
        embedder_of(base, compile=True).load()


def test_a_compiler_that_is_not_there_is_told(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(encoder, "COMPILE", {"backend": absent})
    with pytest.raises(ModelError, match=r"cannot be compiled .*no C\+\+ compiler.*model\.compile=false"):
        embedder_of(base, compile=True).load()


@pytest.mark.parametrize(
    ("batch_size", "shapes"), [(1, {2}), (8, {8}), (16, {16}), (20, {16, 4}), (64, {16}), (70, {16, 6})]
)
def test_every_shape_that_the_tower_will_meet_is_checked(
    base: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int, shapes: set[int]
) -> None:
    met, forward = [], VisionTower.forward

    def counted(self: VisionTower, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        met.append(len(pixels_BCHW))
        return forward(self, pixels_BCHW)

    monkeypatch.setattr(VisionTower, "forward", counted)
    embedder_of(base, batch_size=batch_size).load()
    assert set(met) == shapes and sum(met) <= 2 * CHUNK


def test_a_fault_at_the_batchs_shape_alone_is_noticed(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FullChunksOnly(VisionTower):
        def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
            embeddings_BD = super().forward(pixels_BCHW)
            if len(pixels_BCHW) == CHUNK:
                embeddings_BD[-1] = torch.nan
            return embeddings_BD

    monkeypatch.setattr(Clip, "accelerator", FullChunksOnly)
    assert embedder_of(base, batch_size=8).images.note is None
    assert "cosine nan" in (embedder_of(base, batch_size=64).images.note or "")


def test_texts_do_not_wait_for_the_vision_tower(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Clip, "load_vision", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ModelError, match="no tokenizer"):
        embedder_of(base).embed_texts(["a"])


def test_a_vision_tower_alone_embeds_no_texts(base: Path, tmp_path: Path) -> None:
    load_class("CLIPVisionModelWithProjection", base).save_pretrained(tmp_path)  # type: ignore[operator]
    (tmp_path / "preprocessor_config.json").write_bytes((base / "preprocessor_config.json").read_bytes())
    assert embedder_of(tmp_path).embed_texts(["a"]) is None


def test_the_encoder_takes_nothing_from_the_files_mapping(base: Path) -> None:
    """A weight's alignment in its file would show in the last bits of a product."""
    vision = Clip().load_vision(base)
    mapped = {parameter.data_ptr() for parameter in vision.parameters()}
    embedder = embedder_of(base)
    prepared = ImageEncoder(VisionTower(vision, embedder.spec)).prepare(embedder.compute)
    assert not mapped & {parameter.data_ptr() for parameter in prepared.parameters()}
    assert embedder.compute.device == CPU
