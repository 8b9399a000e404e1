"""Every kind of LoRA adapter gives the embeddings of its own training class, or an error that says what was found."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.models import (
    KINDS,
    PREFIX,
    SPEC,
    edit_config,
    edit_weights,
    load_class,
    lowest_cosine,
    name_as_transformers_4,
    quiet_peft,
    random_pixels,
    reference,
    save_adapter,
    save_base,
)
from lora_clip.errors import AdapterError
from lora_clip.models.adapters import summarise
from lora_clip.models.checkpoint import find_checkpoint
from lora_clip.models.clip import Clip
from lora_clip.models.clip_tower import VisionTower
from lora_clip.models.embedder import LoadedImages, MergedEmbedder

VARIANTS: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ["q_proj", "k_proj", "v_proj", "out_proj"]},
    "mlp": {"target_modules": ["fc1", "fc2"]},
    "patch embedding": {"target_modules": ["patch_embedding", "q_proj"]},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "dora on the patch embedding": {"use_dora": True, "target_modules": ["patch_embedding", "fc1"]},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.1\.self_attn\.v_proj": 32}},
    "bias all": {"bias": "all"},
    "bias lora_only": {"bias": "lora_only"},
    "lora bias": {"lora_bias": True},
    "regex": {"target_modules": r".*encoder\.layers\.1\..*\.(q_proj|fc1)"},
    "all-linear": {"target_modules": "all-linear"},
    "some layers": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "task type": {"task_type": "FEATURE_EXTRACTION"},
    "task type of a head": {"task_type": "SEQ_CLS"},
    "module to save": {"modules_to_save": ["post_layernorm"]},
    "position embedding": {"target_modules": ["position_embedding", "q_proj"]},
    "pissa": {"init_lora_weights": "pissa"},
    "excluded modules": {"target_modules": "all-linear", "exclude_modules": ["k_proj"]},
}
PROJECTION_VARIANTS: dict[str, dict[str, Any]] = {
    "projection": {"target_modules": ["visual_projection", "q_proj"]},
    "projection only": {"target_modules": ["visual_projection"]},
    "projection to save": {"modules_to_save": ["visual_projection"]},
    "projection by suffix": {"modules_to_save": ["projection"]},
}
MATRIX = [
    *[(kind, name, lora) for kind in KINDS for name, lora in VARIANTS.items()],
    *[(kind, name, lora) for kind in KINDS[::2] for name, lora in PROJECTION_VARIANTS.items()],
    ("CLIPModel", "both projections to save", {"modules_to_save": ["visual_projection", "text_projection"]}),
    ("CLIPModel", "vision by regex", {"target_modules": r"vision_model\..*(q_proj|fc2)"}),
    ("CLIPModel", "text tokens too", {"trainable_token_indices": {"token_embedding": [0, 1]}}),
]
PIXELS_BCHW = random_pixels(3)


def cases() -> Iterator[Any]:
    """The matrix; the fast run takes each variant with one class, with another from variant to variant."""
    kinds: dict[str, list[str]] = {}
    for kind, name, _ in MATRIX:
        kinds.setdefault(name, []).append(kind)
    chosen = {name: found[number % len(found)] for number, (name, found) in enumerate(kinds.items())}
    for kind, name, lora in MATRIX:
        yield pytest.param(kind, name, lora, id=f"{kind}-{name}", marks=[pytest.mark.slow] * (kind != chosen[name]))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return save_adapter(tmp_path / "adapter", base)


def load(base: Path, adapter: Path) -> LoadedImages:
    return MergedEmbedder(find_checkpoint(str(base), str(adapter))).images


def embed(base: Path, adapter: Path) -> torch.Tensor:
    with torch.inference_mode():
        return load(base, adapter).encoder(PIXELS_BCHW)


def check_faithful(base: Path, adapter: Path, kind: str, trained: Path | None = None) -> None:
    expected_BD = reference(base, trained or adapter, kind, PIXELS_BCHW)
    assert lowest_cosine(expected_BD, reference(base, None, "CLIPModel", PIXELS_BCHW)) < 0.999, (
        "the adapter must matter"
    )
    assert lowest_cosine(embed(base, adapter), expected_BD) >= 0.9999


@pytest.mark.parametrize(("kind", "name", "lora"), list(cases()))
def test_embeddings_are_those_of_the_class_trained_on(
    base: Path, tmp_path: Path, kind: str, name: str, lora: dict[str, Any]
) -> None:
    check_faithful(base, save_adapter(tmp_path / "adapter", base, kind, **lora), kind)


@pytest.mark.parametrize("lora", [{}, {"use_dora": True}, {"target_modules": "all-linear"}, {"bias": "all"}])
def test_vision_model_named_as_transformers_4_did(base: Path, tmp_path: Path, lora: dict[str, Any]) -> None:
    trained = save_adapter(tmp_path / "5", base, "CLIPVisionModel", **lora)
    shutil.copytree(trained, tmp_path / "4")
    check_faithful(base, name_as_transformers_4(tmp_path / "4"), "CLIPVisionModel", trained)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("lora", [{}, {"use_dora": True}, {"modules_to_save": ["visual_projection"]}])
def test_adapter_saved_in_half_precision(base: Path, tmp_path: Path, dtype: torch.dtype, lora: dict[str, Any]) -> None:
    check_faithful(base, save_adapter(tmp_path / "adapter", base, dtype=dtype, **lora), "CLIPModel")


def test_base_saved_in_half_precision(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", dtype=torch.float16)
    check_faithful(base, save_adapter(tmp_path / "adapter", base), "CLIPModel")


def test_summary_says_what_was_loaded(base: Path, tmp_path: Path) -> None:
    lora: dict[str, Any] = {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "target_modules": ["q_proj", "fc1"]}
    adapter = save_adapter(tmp_path / "adapter", base, **lora)
    summary = load(base, adapter).adapter
    assert summary is not None and summary == summarise(Clip(), adapter)
    assert (summary.kind, summary.rank, summary.layers) == ("rsLoRA", "2/4", 4)


def drop_one(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    del weights[f"{PREFIX}vision_model.encoder.layers.1.self_attn.v_proj.lora_A.weight"]
    return weights


def add_one(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**weights, f"{PREFIX}vision_model.encoder.layers.7.self_attn.v_proj.lora_A.weight": torch.ones(4, 32)}


def untrained(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: weight * 0 if "lora_B" in name else weight for name, weight in weights.items()}


def untrained_vision(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: weight * 0 if "vision" in name and "lora_B" in name else weight for name, weight in weights.items()}


def only_text(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in weights.items() if "text_model" in name}


def with_a_nan(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    weights[f"{PREFIX}vision_model.encoder.layers.1.self_attn.v_proj.lora_A.weight"][0, 0] = torch.nan
    return weights


def nothing(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            drop_one,
            r"1 of 8 weights missing \(such as .*layers\.1\.self_attn\.v_proj\.lora_A\.weight\).*base it was trained",
        ),
        (add_one, r"1 of 9 weights unexpected \(such as .*layers\.7\."),
        (untrained, "changes nothing.*model.adapter=null"),
        (untrained_vision, "changes nothing.*model.adapter=null"),
        (only_text, "only the text tower.*model.adapter=null"),
        (with_a_nan, r"not finite.*layers\.1\.self_attn\.v_proj\.lora_A"),
        (nothing, "touches nothing"),
    ],
)
def test_weights_that_do_not_add_up_are_refused(
    base: Path, adapter: Path, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], message: str
) -> None:
    edit_weights(adapter, edit)
    with pytest.raises(AdapterError, match=message):
        load(base, adapter)


def test_nan_in_a_saved_module_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", base, modules_to_save=["visual_projection"])
    edit_weights(adapter, lambda weights: {n: w * torch.nan if "visual" in n else w for n, w in weights.items()})
    with pytest.raises(AdapterError, match=r"not finite.*visual_projection"):
        load(base, adapter)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"width": 64}, r"does not fit the base model: 8 of 8 weights misshapen"),
        ({"layers": 1}, r"4 of 8 weights unexpected"),
        ({"layers": 3}, r"4 of 12 weights missing"),
    ],
)
def test_wrong_base_is_refused(adapter: Path, tmp_path: Path, other: dict[str, Any], message: str) -> None:
    edit_config(adapter / "adapter_config.json", base_model_name_or_path="somebody/clip")
    with pytest.raises(AdapterError, match=message):
        load(save_base(tmp_path / "other", **other), adapter)


def test_text_tower_adapter_never_lands_in_the_vision_tower(base: Path, tmp_path: Path) -> None:
    """transformers 5 gives the modules of CLIPTextModel and CLIPVisionModel the same names."""
    adapter = save_adapter(tmp_path / "adapter", base, "CLIPTextModel")
    with pytest.raises(AdapterError, match=r"CLIPTextModel.*only the text tower"):
        load(base, adapter)


def test_other_peft_kinds_are_refused(base: Path, tmp_path: Path) -> None:
    from peft import IA3Config, get_peft_model

    config = IA3Config(target_modules=["k_proj", "fc2"], feedforward_modules=["fc2"])
    with quiet_peft():
        get_peft_model(load_class("CLIPModel", base), config).save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(AdapterError, match=r"IA3.*only LoRA"):
        load(base, tmp_path / "adapter")


@pytest.mark.parametrize("peft_type", [..., None, "FROM_THE_FUTURE"])
def test_unknown_peft_kind_is_refused(base: Path, adapter: Path, peft_type: object) -> None:
    edit_config(adapter / "adapter_config.json", peft_type=peft_type)
    with pytest.raises(AdapterError, match="only LoRA"):
        load(base, adapter)


@pytest.mark.parametrize(
    "change", [{"r": 0}, {"task_type": "NONSENSE"}, {"target_modules": ["nowhere"]}, {"r": "four"}]
)
def test_config_that_peft_refuses(base: Path, adapter: Path, change: dict[str, Any]) -> None:
    edit_config(adapter / "adapter_config.json", **change)
    with pytest.raises(AdapterError, match="adapter"):
        load(base, adapter)


def test_config_of_a_later_peft_loads(base: Path, adapter: Path) -> None:
    edit_config(adapter / "adapter_config.json", a_key_from_the_future=None)
    check_faithful(base, adapter, "CLIPModel")


def test_corrupt_weights_are_refused(base: Path, adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(AdapterError, match="cannot be read"):
        load(base, adapter)


def test_what_is_loaded_is_what_the_file_holds(base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT only reports weights that it found no place for."""
    import peft

    monkeypatch.setattr(peft, "set_peft_model_state_dict", lambda *_, **__: None)
    with pytest.raises(AdapterError, match=r"8 of 8 weights .*not .*loaded"):
        load(base, adapter)


@pytest.mark.parametrize("lora", [{"use_dora": True, "modules_to_save": ["visual_projection"]}, {"bias": "all"}])
def test_nothing_of_peft_is_left(base: Path, tmp_path: Path, lora: dict[str, Any]) -> None:
    encoder = load(base, save_adapter(tmp_path / "adapter", base, **lora)).encoder
    assert not [name for name, module in encoder.named_modules() if type(module).__module__.startswith("peft")]
    assert not [name for name, tensor in encoder.state_dict().items() if tensor.is_inference()]
    assert not [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
    assert not [name for name, module in encoder.named_modules() if module.training]
    plain = {name for name, _ in VisionTower(Clip().load_vision(base), SPEC).named_parameters()}
    assert {name for name, _ in encoder.tower.named_parameters()} == plain


def test_task_of_another_kind_of_model_does_not_matter(base: Path, adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path / "plain")
    edit_config(adapter / "adapter_config.json", task_type="CAUSAL_LM")
    check_faithful(base, adapter, "CLIPModel", trained=tmp_path / "plain")


def test_megatron_is_not_imported_at_an_adapters_word(base: Path, adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path / "plain")
    edit_config(adapter / "adapter_config.json", megatron_config={"a": 1}, megatron_core="megatron.of_a_stranger")
    check_faithful(base, adapter, "CLIPModel", trained=tmp_path / "plain")


@pytest.mark.parametrize("change", [{"use_what_is_not_yet_known": True}, {"mode_of_the_future": "other"}])
def test_config_that_this_peft_would_pass_over_is_refused(base: Path, adapter: Path, change: dict[str, Any]) -> None:
    edit_config(adapter / "adapter_config.json", **change)
    with pytest.raises(AdapterError, match=f"{next(iter(change))}.*pip install -U peft"):
        load(base, adapter)


def test_nothing_is_printed(base: Path, adapter: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(base, adapter)
    assert capfd.readouterr() == ("", "")
