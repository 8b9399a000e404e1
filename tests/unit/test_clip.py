"""Base and adapter become one plain network that gives what transformers and PEFT give, or a ModelError."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from helpers.models import (
    KINDS,
    NORMALISATION,
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
from lora_clip.errors import AdapterError, ConfigError, ModelError
from lora_clip.models.checkpoint import Checkpoint, find_checkpoint
from lora_clip.models.clip import ImageEncoder, load_encoder, load_vision, resolve_dtype
from lora_clip.models.clip_tower import fold, patchify

CPU = torch.device("cpu")
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
    return load_encoder(checkpoint, NORMALISATION, dtype, CPU)[0]


@torch.inference_mode()
def embed(encoder: ImageEncoder, pixels_BCHW: torch.Tensor = PIXELS_BCHW) -> torch.Tensor:
    return encoder(pixels_BCHW)


@pytest.mark.parametrize("bias", [False, True])
def test_folded_patch_embedding_equals_the_given_one_of_normalised_pixels(base: Path, bias: bool) -> None:
    patches = nn.Conv2d(3, 32, 8, 8, bias=bias)
    spread(patches, seed=3)
    with torch.inference_mode():
        product, shift_D = fold(patches, NORMALISATION)
        expected_BTD = patches(processed(base, PIXELS_BCHW)).flatten(2).transpose(1, 2)
        torch.testing.assert_close(product(patchify(PIXELS_BCHW, 8).float()) + shift_D, expected_BTD, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_base_alone_gives_its_own_embeddings(base: Path, kind: str) -> None:
    encoder, summary = load_encoder(find_checkpoint(str(base), None), NORMALISATION, torch.float32, CPU)
    embeddings_BD = embed(encoder)
    assert summary is None
    assert (encoder.width, encoder.image_size) == (16, 32)
    assert embeddings_BD.dtype == torch.float32
    assert lowest_cosine(embeddings_BD, reference(base, None, kind, PIXELS_BCHW)) >= 0.9999
    torch.testing.assert_close(embeddings_BD.norm(dim=-1), torch.ones(4))


def test_base_saved_as_vision_model_with_projection(base: Path, tmp_path: Path) -> None:
    load_class("CLIPVisionModelWithProjection", base).save_pretrained(tmp_path / "vision")  # type: ignore[operator]
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
    assert {layer.weight.dtype for layer in encoder.modules() if isinstance(layer, nn.Linear)} == {dtype}
    embeddings_BD = embed(encoder)
    assert embeddings_BD.dtype == torch.float32
    assert lowest_cosine(embeddings_BD, reference(base, adapter, "CLIPModel", PIXELS_BCHW)) >= 0.9999


def test_base_saved_in_half_precision_is_computed_with_in_float32(tmp_path: Path) -> None:
    vision = load_vision(save_base(tmp_path / "base", dtype=torch.float16), CPU)
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
    with pytest.raises(AdapterError, match=r"merged model disagrees with the unmerged one \(cosine -?0\."):
        encoder_of(base, save_adapter(tmp_path / "adapter", base))


def test_grad_mode_is_left_alone(base: Path, tmp_path: Path) -> None:
    encoder_of(base, save_adapter(tmp_path / "adapter", base))
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_a_row_does_not_depend_on_its_neighbours(base: Path) -> None:
    encoder = encoder_of(base)
    other = torch.cat([PIXELS_BCHW[:1], random_pixels(3, seed=9)])
    torch.testing.assert_close(embed(encoder, other)[0], embed(encoder)[0], atol=1e-6, rtol=0)


def test_bert_is_not_clip(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"^base \S+ is a model of type bert: a CLIP model is expected"):
        encoder_of(tmp_path)


def test_base_without_projection_is_refused(base: Path, tmp_path: Path) -> None:
    load_class("CLIPVisionModel", base).save_pretrained(tmp_path)  # type: ignore[operator]
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
    with pytest.raises(ModelError, match="cannot be loaded as a CLIP model"):
        encoder_of(own_base)


@pytest.mark.parametrize("text", ["not JSON", "[]", "{}"])
def test_base_config_that_is_none(own_base: Path, text: str) -> None:
    (own_base / "config.json").write_text(text)
    with pytest.raises(ModelError, match="CLIP model"):
        encoder_of(own_base)


def test_corrupt_base_is_refused(own_base: Path) -> None:
    path = own_base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be loaded as a CLIP model"):
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
    load_vision(own_base, CPU)
    weights = load_file(own_base / "model.safetensors")
    del weights["vision_model.encoder.layers.1.mlp.fc1.weight"]
    save_file(weights, own_base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError):
        load_vision(own_base, CPU)
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
def test_dtype_by_name(name: str, device: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert resolve_dtype(name, device) == dtype


@pytest.mark.parametrize("able", [True, False])
def test_auto_is_bfloat16_where_the_gpu_computes_in_it(able: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: able)
    assert resolve_dtype("auto", "cuda") == (torch.bfloat16 if able else torch.float32)


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


def test_a_tower_that_differs_from_transformers_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "lora_clip.models.clip_tower.patchify", lambda pixels, patch: patchify(pixels.transpose(2, 3), patch)
    )
    with pytest.raises(ModelError, match="embeddings differ from those of transformers"):
        encoder_of(base)


def test_chunks_of_a_batch_are_put_together_again(base: Path) -> None:
    encoder, pixels_BCHW = encoder_of(base), random_pixels(37)
    whole_BD = torch.nn.functional.normalize(encoder.tower(pixels_BCHW), dim=-1)
    torch.testing.assert_close(embed(encoder, pixels_BCHW), whole_BD, atol=1e-6, rtol=0)


def test_unknown_dtype_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.dtype=int8: auto, float32, bfloat16, float16 are known"):
        resolve_dtype("int8", "cpu")
