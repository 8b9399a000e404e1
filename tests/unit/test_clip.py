"""CLIP base and adapter become one plain network that gives what transformers and PEFT give, or a ModelError."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from helpers.models import (
    KINDS,
    SPEC,
    centred_cosine,
    edit_config,
    load_class,
    lowest_cosine,
    processed,
    random_pixels,
    reference,
    save_adapter,
    save_base,
    spread,
)
from lora_clip.demo import DEMO
from lora_clip.errors import AdapterError, ConfigError, ModelError
from lora_clip.models.checkpoint import Checkpoint, find_checkpoint
from lora_clip.models.clip import Clip
from lora_clip.models.clip_tower import VisionTower, fold, patchify
from lora_clip.models.compute import Compute, resolve_dtype
from lora_clip.models.embedder import MergedEmbedder
from lora_clip.models.encoder import ImageEncoder
from lora_clip.pixels.decode import prepare
from lora_clip.types import PreprocessSpec

PIXELS_BCHW = random_pixels(4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def own_base(tmp_path: Path) -> Path:
    """A base that a test may spoil."""
    return save_base(tmp_path / "base")


def encoder_of(base: Path, adapter: Path | None = None, dtype: torch.dtype = torch.float32) -> ImageEncoder:
    checkpoint = Checkpoint(str(base), base, None if adapter is None else str(adapter), adapter)
    return MergedEmbedder(checkpoint, Compute(dtype)).images.encoder


@torch.inference_mode()
def embed(encoder: ImageEncoder, pixels_BCHW: torch.Tensor = PIXELS_BCHW) -> torch.Tensor:
    return encoder(pixels_BCHW)


@pytest.mark.parametrize(("patch", "length"), [(8, 192), (6, 112)], ids=["aligned", "padded"])
@pytest.mark.parametrize("bias", [False, True])
def test_folded_patch_embedding_equals_the_given_one_of_normalised_pixels(
    base: Path, bias: bool, patch: int, length: int
) -> None:
    patches = nn.Conv2d(3, 32, patch, patch, bias=bias)
    spread(patches, seed=3)
    with torch.inference_mode():
        product, shift_D = fold(patches, SPEC)
        expected_BTD = patches(processed(base, PIXELS_BCHW)).flatten(2).transpose(1, 2)
        found_BTD = product(patchify(PIXELS_BCHW, patch, length).float()) + shift_D
        torch.testing.assert_close(found_BTD, expected_BTD, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_base_alone_gives_its_own_embeddings(base: Path, kind: str) -> None:
    embedder = MergedEmbedder(find_checkpoint(str(base), None))
    embeddings_BD = embed(embedder.images.encoder)
    assert (embedder.images.adapter, embedder.images.note, embedder.width, embedder.spec) == (None, None, 16, SPEC)
    assert isinstance(embedder.images.encoder.tower, VisionTower)
    assert embeddings_BD.dtype == torch.float32
    assert lowest_cosine(embeddings_BD, reference(base, None, kind, PIXELS_BCHW)) >= 0.9999
    torch.testing.assert_close(embeddings_BD.norm(dim=-1), torch.ones(4))


def test_base_saved_as_vision_model_with_projection(base: Path, tmp_path: Path) -> None:
    load_class("CLIPVisionModelWithProjection", base).save_pretrained(tmp_path / "vision")  # type: ignore[operator]
    shutil.copy(base / "preprocessor_config.json", tmp_path / "vision")
    assert torch.equal(embed(encoder_of(tmp_path / "vision")), embed(encoder_of(base)))


def test_width_of_the_projection_is_the_whole_models(own_base: Path) -> None:
    config = json.loads((own_base / "config.json").read_text())
    edit_config(own_base / "config.json", vision_config={**config["vision_config"], "projection_dim": 512})
    assert lowest_cosine(embed(encoder_of(own_base)), reference(own_base, None, "CLIPModel", PIXELS_BCHW)) >= 0.9999


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("adapted", [False, True])
def test_half_precision_stays_close_to_float32(base: Path, tmp_path: Path, adapted: bool, dtype: torch.dtype) -> None:
    adapter = save_adapter(tmp_path / "adapter", base, target_modules="all-linear") if adapted else None
    encoder = encoder_of(base, adapter, dtype)
    products = {name for name, one in encoder.named_parameters() if one.ndim == 2 and one.dtype == dtype}
    assert {name.split(".")[2] for name in products if "layers" in name} == {"0", "1"}
    assert encoder.tower.start_TD.dtype == torch.float32
    embeddings_BD = embed(encoder)
    assert embeddings_BD.dtype == torch.float32
    assert lowest_cosine(embeddings_BD, reference(base, adapter, "CLIPModel", PIXELS_BCHW)) >= 0.9999


def test_base_saved_in_half_precision_is_computed_with_in_float32(tmp_path: Path) -> None:
    vision = Clip().load_vision(save_base(tmp_path / "base", dtype=torch.float16))
    assert {parameter.dtype for parameter in vision.parameters()} == {torch.float32}


def test_merged_in_float32_and_then_cast(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", base)
    merged, cast = encoder_of(base, adapter).state_dict(), encoder_of(base, adapter, torch.bfloat16).state_dict()
    assert all(torch.equal(cast[name], weight.to(cast[name].dtype)) for name, weight in merged.items())


@pytest.mark.parametrize("broken", ["the base is left as it is", "noise is added"])
def test_merge_that_disagrees_is_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    honest = PeftModel.__getattr__

    def merge(self: PeftModel, name: str) -> object:
        if name != "merge_and_unload":
            return honest(self, name)
        unmerged = honest(self, "unload")
        return lambda safe_merge: spread(unmerged(), 1) if "noise" in broken else unmerged()

    monkeypatch.setattr(PeftModel, "__getattr__", merge)
    with pytest.raises(AdapterError, match=r"in float32 differs from the unmerged model \(cosine -?0\."):
        encoder_of(base, save_adapter(tmp_path / "adapter", base))


def test_grad_mode_is_left_alone(base: Path, tmp_path: Path) -> None:
    encoder_of(base, save_adapter(tmp_path / "adapter", base))
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_a_row_does_not_depend_on_its_neighbours(base: Path) -> None:
    encoder = encoder_of(base)
    other = torch.cat([PIXELS_BCHW[:1], random_pixels(3, seed=9)])
    torch.testing.assert_close(embed(encoder, other)[0], embed(encoder)[0], atol=1e-6, rtol=0)


def test_base_of_an_unknown_family_is_told_which_are_known(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"is a model of type bert: .* clip, clip_vision_model.*docs/extending\.md"):
        encoder_of(tmp_path)


def test_base_without_projection_is_refused(base: Path, tmp_path: Path) -> None:
    load_class("CLIPVisionModel", base).save_pretrained(tmp_path)  # type: ignore[operator]
    shutil.copy(base / "preprocessor_config.json", tmp_path)
    with pytest.raises(ModelError, match=r"lacks 1 weights of a CLIP vision model, such as visual_projection\.weight"):
        encoder_of(tmp_path)


def test_base_with_a_missing_weight_is_refused(own_base: Path) -> None:
    weights = load_file(own_base / "model.safetensors")
    del weights["vision_model.encoder.layers.1.mlp.fc1.weight"]
    save_file(weights, own_base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights .*layers\.1\.mlp\.fc1\.weight"):
        encoder_of(own_base)


def test_base_whose_weights_have_another_shape_than_its_config_says(own_base: Path) -> None:
    config = json.loads((own_base / "config.json").read_text())
    edit_config(own_base / "config.json", vision_config={**config["vision_config"], "intermediate_size": 96})
    with pytest.raises(ModelError, match="cannot be loaded as a CLIP vision model"):
        encoder_of(own_base)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not JSON", r"config\.json cannot be read as JSON"),
        ("[]", r"config\.json is not a model's config"),
        ("{}", "is a model of type None"),
        ('{"model_type": "clip", "vision_config": 3}', "cannot be loaded as a CLIP vision model"),
    ],
)
def test_base_config_that_is_none(own_base: Path, text: str, message: str) -> None:
    (own_base / "config.json").write_text(text)
    with pytest.raises(ModelError, match=message):
        encoder_of(own_base)


def test_corrupt_base_is_refused(own_base: Path) -> None:
    path = own_base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be loaded as a CLIP vision model"):
        encoder_of(own_base)


def test_base_with_a_nan_is_refused(own_base: Path) -> None:
    weights = load_file(own_base / "model.safetensors")
    weights["vision_model.encoder.layers.1.mlp.fc1.weight"][0, 0] = torch.nan
    save_file(weights, own_base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are not finite, such as .*layers\.1\.mlp\.fc1\.weight"):
        encoder_of(own_base)


def test_code_in_a_base_is_not_run(own_base: Path) -> None:
    (own_base / "modeling_evil.py").write_text("raise SystemExit('executed')\n")
    edit_config(own_base / "config.json", auto_map={"AutoModel": "modeling_evil.Evil", "AutoConfig": "modeling_evil.C"})
    assert lowest_cosine(embed(encoder_of(own_base)), reference(own_base, None, "CLIPModel", PIXELS_BCHW)) >= 0.9999


def test_nothing_is_printed(own_base: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Clip().load_vision(own_base)
    weights = load_file(own_base / "model.safetensors")
    del weights["vision_model.encoder.layers.1.mlp.fc1.weight"]
    save_file(weights, own_base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError):
        Clip().load_vision(own_base)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "device", "dtype"),
    [
        ("auto", "mps", torch.float32),
        ("float32", "cuda", torch.float32),
        ("bfloat16", "cpu", torch.bfloat16),
        ("float16", "cpu", torch.float16),
    ],
)
def test_dtype_by_name(name: str, device: str, dtype: torch.dtype) -> None:
    assert resolve_dtype(name, device) == dtype


@pytest.mark.parametrize(("capability", "able"), [((9, 0), True), ((7, 0), True), ((6, 1), False)])
def test_auto_is_float16_where_the_gpu_has_fast_products_in_it(
    capability: tuple[int, int], able: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A V100 only emulates bfloat16."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert resolve_dtype("auto", "cuda") == (torch.float16 if able else torch.float32)


@pytest.mark.parametrize("able", [True, False])
def test_auto_is_bfloat16_where_the_cpu_computes_in_it(able: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: able, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert resolve_dtype("auto", "cpu") == (torch.bfloat16 if able else torch.float32)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu", "relu"])
def test_activation_is_the_configs(own_base: Path, activation: str) -> None:
    config = json.loads((own_base / "config.json").read_text())
    edit_config(own_base / "config.json", vision_config={**config["vision_config"], "hidden_act": activation})
    embeddings_BD = embed(encoder_of(own_base))
    assert lowest_cosine(embeddings_BD, reference(own_base, None, "CLIPModel", PIXELS_BCHW)) >= 0.999999


def test_chunks_of_a_batch_are_put_together_again(base: Path) -> None:
    encoder, pixels_BCHW = encoder_of(base), random_pixels(37)
    whole_BD = torch.nn.functional.normalize(encoder.tower(pixels_BCHW), dim=-1)
    torch.testing.assert_close(embed(encoder, pixels_BCHW), whole_BD, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("images", "rows"), [(0, 16), (1, 16), (16, 16), (17, 32), (33, 37), (37, 37)])
def test_padding_is_left_out_and_changes_no_bit(base: Path, images: int, rows: int) -> None:
    encoder, pixels_BCHW = encoder_of(base), random_pixels(37)
    with torch.inference_mode():
        assert torch.equal(encoder(pixels_BCHW, images), encoder(pixels_BCHW)[:rows])


def demo_pixels(spec: PreprocessSpec) -> torch.Tensor:
    """The pictures of the demo's first shard."""
    images = []
    with tarfile.open(next((DEMO / "shards").glob("*.tar"))) as tar:
        for member in tar:
            if member.name.endswith((".jpg", ".png", ".webp")) and (file := tar.extractfile(member)) is not None:
                images.append(torch.empty(3, *spec.crop, dtype=torch.uint8))
                prepare(file.read(), spec, images[-1])
    return torch.stack(images)


def rounded(encoder: ImageEncoder, dtype: torch.dtype, pixels_BCHW: torch.Tensor) -> tuple[float, float]:
    """Raw and centred cosine to float32 of everything in `dtype`: residual stream, norms and positions too."""
    exact_BD = embed(encoder, pixels_BCHW)
    encoder.tower.to(dtype)
    rounded_BD = embed(encoder, pixels_BCHW)
    return lowest_cosine(exact_BD, rounded_BD), centred_cosine(exact_BD, rounded_BD)


@pytest.mark.parametrize(("dtype", "least"), [(torch.bfloat16, 0.9999), (torch.float16, 0.99999)])
def test_a_gpus_arithmetic_on_the_trained_demo(dtype: torch.dtype, least: float) -> None:
    """On its own pictures bfloat16 gives 0.99995 raw and centred, float16 0.999999."""
    embedder = MergedEmbedder(find_checkpoint(str(DEMO / "base"), str(DEMO / "adapter")))
    raw, centred = rounded(embedder.images.encoder, dtype, demo_pixels(embedder.spec))
    assert raw >= least and centred >= least


@pytest.mark.parametrize(
    ("dtype", "least", "least_centred"), [(torch.bfloat16, 0.999, 0.997), (torch.float16, 0.99999, 0.9999)]
)
def test_a_gpus_arithmetic_on_deep_towers(
    tmp_path: Path, dtype: torch.dtype, least: float, least_centred: float
) -> None:
    """Twelve layers of weights as large as training leaves them, over images whose embeddings share most of their
    direction (mean cosine 0.8): bfloat16 gives 0.9997 raw and 0.998 centred, float16 0.999996 and 0.99998.
    """
    base = save_base(tmp_path / "base", layers=12, width=64, projection=64)
    raw, centred = rounded(encoder_of(base), dtype, random_pixels(64))
    assert raw >= least and centred >= least_centred


class OnMps(torch.Tensor):
    """A tensor on a stand-in for MPS, which has no float64; `.cpu()` leaves it."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        if func is torch.Tensor.cpu:
            return result.as_subclass(torch.Tensor)
        if isinstance(result, cls) and result.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return result


def test_no_float64_is_made_on_the_models_device(base: Path) -> None:
    expected_BD, vision = embed(encoder_of(base)), Clip().load_vision(base)
    for module in vision.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(parameter.data.as_subclass(OnMps), requires_grad=False))
    with pytest.raises(TypeError, match="float64"):
        next(vision.parameters()).double()
    encoder = ImageEncoder(VisionTower(vision, SPEC))
    assert isinstance(encoder.tower.patches.weight, OnMps)  # type: ignore[union-attr]
    torch.testing.assert_close(embed(encoder).as_subclass(torch.Tensor), expected_BD, atol=1e-6, rtol=0)


def test_unknown_dtype_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.dtype=int4: auto, float32, bfloat16, float16, int8, fp8 are known"):
        resolve_dtype("int4", "cpu")
