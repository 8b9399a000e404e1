"""Every kind of LoRA adapter gives the embeddings of its own training class, or an error that says what was found."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file

from helpers.models import (
    KINDS,
    PREFIX,
    SPEC,
    edit_config,
    edit_weights,
    load_class,
    lowest_cosine,
    name_as_transformers_4,
    processed,
    quiet_peft,
    random_pixels,
    reference,
    save_adapter,
    save_base,
    save_trained,
)
from helpers.open_clip import Transformer, embed_with
from lora_clip.errors import AdapterError
from lora_clip.models.adapter_kinds import SHARED, AdapterSummary
from lora_clip.models.adapter_sums import merge_sum
from lora_clip.models.adapters import attach_text, merge, summarise
from lora_clip.models.checkpoint import find_checkpoint
from lora_clip.models.clip import Clip
from lora_clip.models.clip_tower import VisionTower
from lora_clip.models.embedder import MergedEmbedder
from lora_clip.models.vision import LoadedImages

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
PROJECT = Path(__file__).parents[2]
MATRICES, SHAPES = ("w_lora_A", "w_lora_B"), ((4, 32), (32, 4))
"""What CLIP-LoRA saves of a layer."""


def cases() -> Iterator[Any]:
    """The matrix; the fast run takes every other variant with one class, with another from variant to variant."""
    kinds: dict[str, list[str]] = {}
    for kind, name, _ in MATRIX:
        kinds.setdefault(name, []).append(kind)
    chosen = {name: found[number % len(found)] for number, (name, found) in enumerate(kinds.items()) if number % 2 == 0}
    for kind, name, lora in MATRIX:
        yield pytest.param(kind, name, lora, id=f"{kind}-{name}", marks=[pytest.mark.slow] * (kind != chosen.get(name)))


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


def check_faithful(base: Path, adapter: Path, kind: str, trained: Path | None = None, least: float = 0.999) -> None:
    """`least`: below which cosine to the base the adapter's embeddings must be."""
    expected_BD = reference(base, trained or adapter, kind, PIXELS_BCHW)
    assert lowest_cosine(expected_BD, reference(base, None, "CLIPModel", PIXELS_BCHW)) < least, (
        "the adapter must matter"
    )
    assert lowest_cosine(embed(base, adapter), expected_BD) >= 0.9999


@pytest.mark.parametrize(("kind", "name", "lora"), list(cases()))
def test_embeddings_are_those_of_the_class_trained_on(
    base: Path, tmp_path: Path, kind: str, name: str, lora: dict[str, Any]
) -> None:
    adapter = save_adapter(tmp_path / "adapter", base, kind, **lora)
    if kind == "CLIPVisionModel" and "task_type" in lora:  # PEFT writes no class then, and both towers have these names
        edit_config(adapter / "adapter_config.json", auto_mapping={"base_model_class": kind})
    check_faithful(base, adapter, kind)


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
    assert summary is not None and summary == summarise(Clip(), find_checkpoint(str(base), str(adapter)))
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


INNER = {"CLIPVisionModel": "", "CLIPTextModel": "", "CLIPEncoder": "encoder."}
"""What an adapter within a tower is saved from, and where its names begin."""


@pytest.mark.parametrize("kind", INNER)
def test_an_adapter_that_fits_both_towers_says_which_it_is_for(base: Path, tmp_path: Path, kind: str) -> None:
    """PEFT writes no class where a task was given (FEATURE_EXTRACTION); the towers of this base have equal shapes."""
    whole: Any = load_class("CLIPModel", base)
    tower = whole.text_model if kind == "CLIPTextModel" else whole.vision_model
    trained = tower.encoder if kind == "CLIPEncoder" else tower
    config = LoraConfig(r=4, target_modules=["q_proj", "fc1"], task_type="FEATURE_EXTRACTION")
    adapter = save_trained(tmp_path / "adapter", trained, config)
    with torch.inference_mode():
        expected_BD = whole.get_image_features(pixel_values=processed(base, PIXELS_BCHW)).pooler_output
    assert "auto_mapping" not in load_json(adapter) or load_json(adapter)["auto_mapping"] is None
    for ask in (lambda one: one.images, lambda one: one.texts):
        with pytest.raises(
            AdapterError, match=r"fits the vision tower and the text tower.*add to its adapter_config"
        ) as e:
            ask(MergedEmbedder(find_checkpoint(str(base), str(adapter))))
    vision, text = re.findall(r'"auto_mapping": (\{.*?\})', str(e.value))
    edit_config(adapter / "adapter_config.json", auto_mapping=json.loads(text))
    with pytest.raises(AdapterError, match="only the text tower"):
        load(base, adapter)
    edit_config(adapter / "adapter_config.json", auto_mapping=json.loads(vision))
    assert load(base, adapter).note is None
    if kind != "CLIPTextModel":
        assert lowest_cosine(embed(base, adapter), expected_BD) >= 0.9999


def test_a_class_that_both_towers_have_is_noted(base: Path, tmp_path: Path) -> None:
    whole: Any = load_class("CLIPModel", base)
    adapter = save_trained(tmp_path / "adapter", whole.vision_model.encoder, LoraConfig(r=4, target_modules=["fc1"]))
    assert "trained on a CLIPEncoder, which both towers have" in (load(base, adapter).note or "")


def test_an_adapter_that_fits_one_tower_alone_needs_no_class(tmp_path: Path) -> None:
    """The text tower is of another width, as in every published CLIP."""
    base = save_base(tmp_path / "base", text_width=16)
    adapter = save_adapter(tmp_path / "adapter", base, "CLIPVisionModel", task_type="FEATURE_EXTRACTION")
    check_faithful(base, adapter, "CLIPVisionModel")
    assert load(base, adapter).note is None


def load_json(adapter: Path) -> dict[str, Any]:
    return json.loads((adapter / "adapter_config.json").read_text())


def save_kind(folder: Path, base: Path, kind: str, trained_on: str, **config: Any) -> Path:
    """An adapter of a kind of PEFT's with random weights; returns the folder."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    classes = {one.value: cls for one, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    config = {"target_modules": ["q_proj", "v_proj"], **config}
    return save_trained(folder, load_class(trained_on, base), classes[kind](**config))


OTHER_KINDS: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10},
    "BEFT": {},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 4},
    "DEFT": {},
    "DELORA": {},
    "FOURIERFT": {"n_frequency": 50},
    "GLORA": {},
    "GRALORA": {},
    "HIRA": {},
    "HRA": {"r": 4},
    "IA3": {"feedforward_modules": []},
    "LN_TUNING": {"target_modules": ["layer_norm1"]},
    "LOHA": {"r": 4, "alpha": 8, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "LOKR": {"r": 4, "alpha": 8, "rank_pattern": {"q_proj": 2}},
    "MISS": {"r": 4},
    "OFT": {"oft_block_size": 4, "modules_to_save": ["post_layernorm"]},
    "OSF": {},
    "PEANUT": {},
    "PSOFT": {},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 4},
    "SUPERTUNING": {},
    "TRAINABLE_TOKENS": {"target_modules": ["position_embedding"], "token_indices": [1, 2]},
    "VBLORA": {"vector_length": 4, "num_vectors": 16, "topk": 2},
    "WAVEFT": {"n_frequency": 50},
    "FROD": {},
    "PVERA": {},
    "RANDLORA": {"r": 4},
    "TINYLORA": {},
    "UNILORA": {},
    "VERA": {"r": 4},
}
"""Kinds besides LoRA, each with what its config needs on a model this small."""
USUAL = {"LOHA", "LOKR", "OFT", "VERA"}
"""Those that people train most, and one of shared matrices, stand for all in the fast run."""


@pytest.mark.parametrize("trained_on", ["CLIPModel", pytest.param("CLIPVisionModel", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in USUAL)) for kind in OTHER_KINDS]
)
def test_other_kinds_are_merged_or_refused(base: Path, tmp_path: Path, kind: str, trained_on: str) -> None:
    adapter = save_kind(tmp_path / "adapter", base, kind, trained_on, **OTHER_KINDS[kind])
    if kind in SHARED and trained_on == "CLIPModel":
        with pytest.raises(AdapterError, match=rf"{kind}.*share.*merge_and_unload.*model\.base"):
            load(base, adapter)
        return
    check_faithful(base, adapter, trained_on, least=1 - 1e-6)


@pytest.mark.parametrize("kind", ["LILY", "PREFIX_TUNING"])
def test_kinds_that_cannot_be_merged_are_refused(base: Path, adapter: Path, kind: str) -> None:
    edit_config(adapter / "adapter_config.json", peft_type=kind)
    with pytest.raises(AdapterError, match=rf"{kind}, which cannot be merged.*docs/adapters\.md.*model\.adapter=null"):
        load(base, adapter)


@pytest.mark.parametrize("peft_type", [..., None, "FROM_THE_FUTURE", ["LORA"]])
def test_unknown_peft_kind_is_refused(base: Path, adapter: Path, peft_type: object) -> None:
    edit_config(adapter / "adapter_config.json", peft_type=peft_type)
    with pytest.raises(AdapterError, match=r"does not know: pip install -U peft"):
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


@pytest.mark.parametrize("kind", ["CLIPModel", "CLIPVisionModel"])
def test_names_that_were_saved_by_hand(base: Path, tmp_path: Path, kind: str) -> None:
    """By torch.compile, FSDP, or as a state_dict with the adapter's own name."""
    trained = save_adapter(tmp_path / "trained", base, kind, use_dora=True)
    shutil.copytree(trained, tmp_path / "renamed")

    def rename(name: str) -> str:
        return name.replace(PREFIX, f"{PREFIX}_orig_mod.").replace(".lora_A.", ".lora_A.default.")

    edit_weights(tmp_path / "renamed", lambda weights: {rename(name): weight for name, weight in weights.items()})
    check_faithful(base, tmp_path / "renamed", kind, trained=trained)


def test_encoder_within_a_tower(base: Path, tmp_path: Path) -> None:
    """PEFT put onto `vision_model.encoder` alone."""
    whole: Any = load_class("CLIPModel", base)
    config = LoraConfig(r=4, target_modules=["q_proj", "fc1"])
    adapter = save_trained(tmp_path / "adapter", whole.vision_model.encoder, config)
    with torch.inference_mode():
        values = processed(base, PIXELS_BCHW)
        expected_BD = whole.get_image_features(pixel_values=values).pooler_output
    edit_config(adapter / "adapter_config.json", base_model_name_or_path=None)
    assert lowest_cosine(expected_BD, reference(base, None, "CLIPModel", PIXELS_BCHW)) < 0.999
    assert lowest_cosine(embed(base, adapter), expected_BD) >= 0.9999


def test_classifier_on_top_is_left_aside(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", base, "CLIPForImageClassification", modules_to_save=["classifier"])
    shutil.copytree(adapter, tmp_path / "bare")
    edit_config(tmp_path / "bare" / "adapter_config.json", modules_to_save=None)
    edit_weights(tmp_path / "bare", lambda weights: {n: w for n, w in weights.items() if "classifier" not in n})
    check_faithful(base, adapter, "CLIPModel", trained=tmp_path / "bare")


def test_sum_is_that_of_the_changes(base: Path, tmp_path: Path) -> None:
    """Against W + 0.7 d1 - 0.4 d2, each d from PEFT's own merge of the whole model; images and texts."""
    one = save_adapter(tmp_path / "one", base, use_dora=True, modules_to_save=["visual_projection"])
    other = save_kind(tmp_path / "other", base, "LOKR", "CLIPModel", r=4, target_modules=["q_proj", "fc1"])
    weights = {str(one): 0.7, str(other): -0.4}
    start = load_class("CLIPModel", base).state_dict()
    expected = {name: weight.double() for name, weight in start.items()}
    for folder, weight in weights.items():
        with quiet_peft():
            merged = PeftModel.from_pretrained(load_class("CLIPModel", base), folder).merge_and_unload().state_dict()
        expected = {name: sum_ + weight * (merged[name].double() - start[name]) for name, sum_ in expected.items()}
    summed: Any = load_class("CLIPModel", base)
    summed.load_state_dict(expected)
    with torch.inference_mode():
        expected_BD = summed.get_image_features(pixel_values=processed(base, PIXELS_BCHW)).pooler_output
    loaded = MergedEmbedder(find_checkpoint(str(base), weights)).images
    for single in (one, other):
        assert lowest_cosine(embed(base, single), expected_BD) < 0.999, "the weights must matter"
    with torch.inference_mode():
        assert lowest_cosine(loaded.encoder(PIXELS_BCHW), expected_BD) >= 1 - 1e-6
    assert loaded.adapter == AdapterSummary("DoRA and LoKr", "4", 4)
    text: Any = Clip().load_text(base)
    merge_sum(text, find_checkpoint(str(base), weights).parts, lambda folder: merge_text(text, folder))
    for name, weight in text.state_dict().items():
        assert torch.allclose(weight.double(), expected[name], atol=1e-6)


def merge_text(text: Any, folder: Path) -> None:
    adapted = attach_text(Clip(), text, folder)
    assert adapted is not None
    merge(adapted, folder)


def test_sum_of_one_with_weight_one_is_that_adapter(base: Path, adapter: Path) -> None:
    with torch.inference_mode():
        summed_BD = MergedEmbedder(find_checkpoint(str(base), {str(adapter): 1})).images.encoder(PIXELS_BCHW)
    assert lowest_cosine(summed_BD, embed(base, adapter)) >= 1 - 1e-6


def test_sum_that_changes_nothing_is_refused(base: Path, adapter: Path) -> None:
    with pytest.raises(AdapterError, match=r"sum of adapters changes nothing.*weights all 0"):
        assert MergedEmbedder(find_checkpoint(str(base), {str(adapter): 0})).images


LORALIB = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "proj": "out_proj"}
"""CLIP-LoRA's names of an attention's projections, and transformers'."""


def save_clip_lora(path: Path, layers: int, modules: list[str], **about: Any) -> dict[str, Any]:
    """A .pt as CLIP-LoRA writes it, of random matrices; returns what is in it."""
    generator = torch.Generator().manual_seed(3)

    def pair() -> dict[str, torch.Tensor]:
        return {name: torch.randn(shape, generator=generator) / 8 for name, shape in zip(MATRICES, SHAPES, strict=True)}

    weights = {f"layer_{number}": {name: pair() for name in modules} for number in range(layers)}
    saved = {"weights": weights, "metadata": {"r": 4, "alpha": 3, "params": ["q", "v"], **about}}
    torch.save(saved, path)
    return saved


def converted(path: Path, script: str) -> Path:
    subprocess.run([sys.executable, "-c", script, str(path)], check=True)
    return path.with_suffix(".safetensors")


def in_the_docs() -> str:
    page = (PROJECT / "docs" / "adapters.md").read_text()
    return page.partition("## CLIP-LoRA")[2].partition("```python\n")[2].partition("```")[0].strip()


@pytest.mark.parametrize(
    ("encoder", "position", "layers", "text", "vision"),
    [
        ("vision", "all", 2, [], [0, 1]),
        pytest.param("both", "bottom", 4, [0, 1], [0, 1], marks=pytest.mark.slow),
        pytest.param("both", "mid", 4, [4, 5], [4, 5], marks=pytest.mark.slow),
        pytest.param("vision", "top3", 3, [], [9, 10, 11], marks=pytest.mark.slow),
        pytest.param("both", "all", 14, [*range(12)], [0, 1], marks=pytest.mark.slow),
    ],
)
def test_what_clip_lora_saved_is_read(
    tmp_path: Path, encoder: str, position: str, layers: int, text: list[int], vision: list[int]
) -> None:
    """W + alpha / sqrt(r) B A in the layers that its position names, in the text tower first."""
    base = save_base(tmp_path / "base", layers=12)
    names = list(LORALIB) if encoder == "vision" else ["q_proj", "v_proj"]
    saved = save_clip_lora(tmp_path / "lora.pt", layers, names, encoder=encoder, position=position)
    adapter = converted(tmp_path / "lora.pt", in_the_docs())
    model: Any = load_class("CLIPModel", base)
    places = [*(model.text_model.encoder.layers[one] for one in text)]
    places += [model.vision_model.encoder.layers[one] for one in vision]
    with torch.inference_mode():
        for number, layer in enumerate(places):
            for name, one in saved["weights"][f"layer_{number}"].items():
                getattr(layer.self_attn, LORALIB[name]).weight += 3 / 4**0.5 * one["w_lora_B"] @ one["w_lora_A"]
        expected_BD = model.get_image_features(pixel_values=processed(base, PIXELS_BCHW)).pooler_output
    assert lowest_cosine(expected_BD, reference(base, None, "CLIPModel", PIXELS_BCHW)) < 0.9999
    loaded = load(base, adapter)
    with torch.inference_mode():
        assert lowest_cosine(loaded.encoder(PIXELS_BCHW), expected_BD) >= 1 - 1e-6
    assert loaded.adapter == AdapterSummary("rsLoRA", "4", len(vision) * len(names))
    tower = Clip().load_text(base)
    attached = attach_text(Clip(), tower, adapter)
    assert (attached is not None) == bool(text)
    if attached is not None:
        merge(attached, adapter)
        assert torch.allclose(get_query(tower, text[0]), get_query(model, text[0]), atol=1e-6)


def get_query(model: Any, layer: int) -> torch.Tensor:
    return model.text_model.encoder.layers[layer].self_attn.q_proj.weight


def test_the_lines_that_convert_clip_lora_are_in_the_message_and_in_the_docs(base: Path, tmp_path: Path) -> None:
    save_clip_lora(tmp_path / "lora.pt", 2, ["q_proj"], encoder="vision", position="all")
    with pytest.raises(AdapterError, match=r"pickle.*these lines") as caught:
        find_checkpoint(str(base), str(tmp_path / "lora.pt"))
    assert str(caught.value).endswith(in_the_docs())
    assert len(in_the_docs().splitlines()) <= 7 and "weights_only=True" in in_the_docs()


def test_clip_loras_files_that_are_not_clear_are_refused(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "lora.pt"
    save_clip_lora(path, 2, ["q_proj", "fc1"], encoder="vision", position="all")
    with pytest.raises(AdapterError, match=r"does not write.*layer_0\.fc1\.w_lora_A"):
        find_checkpoint(str(base), str(converted(path, in_the_docs())))
    save_clip_lora(path, 2, ["q_proj"], encoder="vision", position="sideways")
    with pytest.raises(AdapterError, match="position=sideways"):
        find_checkpoint(str(base), str(converted(path, in_the_docs())))
    save_file({"layer_0.q_proj.w_lora_A": torch.ones(4, 32)}, tmp_path / "bare.safetensors")
    with pytest.raises(AdapterError, match=r"without CLIP-LoRA's metadata.*docs/adapters\.md"):
        find_checkpoint(str(base), str(tmp_path / "bare.safetensors"))
    save_clip_lora(path, 2, ["q_proj"], encoder="text", position="all")
    with pytest.raises(AdapterError, match="only the text tower"):
        load(base, converted(path, in_the_docs()))


@pytest.mark.parametrize("targets", [["attn"], ["attn", "c_fc", "c_proj"], ["c_fc", "out_proj"]])
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("within", [pytest.param("", marks=pytest.mark.slow), "visual.transformer."])
def test_peft_on_open_clips_transformer(
    base: Path, tmp_path: Path, targets: list[str], rslora: bool, within: str
) -> None:
    """Its base has no name; attention's three matrices are one there."""
    model: Any = load_class("CLIPModel", base)
    values, transformer = processed(base, PIXELS_BCHW), Transformer(model.vision_model.encoder.layers).eval()
    with torch.inference_mode():
        plain_BD = embed_with(transformer, model, values)
    assert lowest_cosine(plain_BD, reference(base, None, "CLIPModel", PIXELS_BCHW)) > 1 - 1e-6, "the same model"
    config = LoraConfig(r=4, target_modules=targets, use_rslora=rslora)
    adapter = save_trained(tmp_path / "adapter", transformer, config)
    edit_config(adapter / "adapter_config.json", base_model_name_or_path=["ViT-B-32", "openai"])
    with torch.inference_mode():
        expected_BD = embed_with(transformer, model, values)
    edit_weights(adapter, lambda weights: {n.replace(PREFIX, f"{PREFIX}{within}"): w for n, w in weights.items()})
    assert lowest_cosine(expected_BD, plain_BD) < 0.9999
    assert lowest_cosine(embed(base, adapter), expected_BD) >= 1 - 1e-6


def test_open_clips_text_is_not_taken_for_vision(base: Path, tmp_path: Path) -> None:
    """In a whole open_clip model the text tower is `transformer`, beside `visual`."""
    model: Any = load_class("CLIPModel", base)
    blocks = Transformer(model.vision_model.encoder.layers)
    adapter = save_trained(tmp_path / "adapter", blocks, LoraConfig(r=4, target_modules=["c_fc"]))
    expected_BD = embed(base, adapter)

    def beside_text(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        vision = {name.replace(PREFIX, f"{PREFIX}visual.transformer."): weight for name, weight in weights.items()}
        text = {name.replace(PREFIX, f"{PREFIX}transformer."): 9 * weight for name, weight in weights.items()}
        return vision | text

    edit_weights(adapter, beside_text)
    assert torch.equal(embed(base, adapter), expected_BD)


def test_open_clips_patterns_are_refused(base: Path, tmp_path: Path) -> None:
    model: Any = load_class("CLIPModel", base)
    config = LoraConfig(r=4, target_modules=["c_fc"], rank_pattern={"c_fc": 2})
    adapter = save_trained(tmp_path / "adapter", Transformer(model.vision_model.encoder.layers), config)
    with pytest.raises(AdapterError, match=r"open_clip model, with rank_pattern.*merge_and_unload"):
        load(base, adapter)


def test_open_clips_other_weights_are_refused(base: Path, tmp_path: Path) -> None:
    model: Any = load_class("CLIPModel", base)
    config = LoraConfig(r=4, target_modules=["c_fc"])
    adapter = save_trained(tmp_path / "adapter", Transformer(model.vision_model.encoder.layers), config)
    edit_weights(adapter, lambda weights: {**weights, f"{PREFIX}proj.lora_A.weight": torch.ones(4, 32)})
    with pytest.raises(AdapterError, match=r"proj\.lora_A\.weight has no counterpart.*merge_and_unload"):
        load(base, adapter)
