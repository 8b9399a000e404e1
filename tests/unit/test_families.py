"""Every family against transformers and PEFT alone, and the one that docs/extending.md adds, from file to embedding."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from helpers.families import CASES, CLIP_PROCESSOR, VISION, Case, both
from helpers.models import edit_config, edit_weights, lowest_cosine, random_pixels, save_base
from lora_clip.errors import ModelError
from lora_clip.models import base as registry
from lora_clip.models.checkpoint import find_checkpoint
from lora_clip.models.clip_tower import VisionTower
from lora_clip.models.compute import Compute
from lora_clip.models.dino import Dinov2
from lora_clip.models.embedder import MergedEmbedder
from lora_clip.models.generic import Family, PlainTower, embedding_of

PROJECT = Path(__file__).parents[2]
EXAMPLE = PROJECT / "examples" / "groupvit.py"
TEXTS = ["A b", "c", "d a B c a d", "a " * 40]
WITHOUT_PROJECTION = ("dinov2",)
FAST = ("metaclip_2", "metaclip_2_vision_model", "altclip", "chinese_clip", *WITHOUT_PROJECTION)
GROUPS = {"depths": [1, 1, 1], "num_group_tokens": [4, 2, 0], "num_output_groups": [4, 2, 0]}
GROUPVIT = Case(
    "GroupViTModel",
    "GroupViTConfig",
    both({}, {**VISION, **GROUPS, "num_hidden_layers": 3}, projection_dim=16, projection_intermediate_dim=32),
    "CLIPImageProcessorPil",
    CLIP_PROCESSOR,
)


EACH = [pytest.param(name, marks=[pytest.mark.slow] * (name not in ("siglip", "dinov2"))) for name in CASES]
"""A family with texts and one without stand for all in the fast run."""


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example's file and its line in the registry."""
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    monkeypatch.setitem(registry.FAMILIES, "groupvit", "groupvit:GroupVit")
    monkeypatch.delitem(sys.modules, "groupvit", raising=False)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved model of every family."""
    folder = tmp_path_factory.mktemp("bases")
    return {name: case.save(folder / name) for name, case in {**CASES, "groupvit": GROUPVIT}.items()}


def embedder_of(base: Path, adapter: Path | None = None) -> MergedEmbedder:
    return MergedEmbedder(find_checkpoint(str(base), adapter and str(adapter)), Compute(batch_size=4))  # type: ignore[arg-type]


def check(case: Case, base: Path, adapter: Path | None, tower: bool = False) -> MergedEmbedder:
    """Embeddings of images and texts are transformers' own; an adapter of a tower alone leaves texts as they are."""
    embedder = embedder_of(base, adapter)
    pixels_BCHW = random_pixels(4, embedder.spec.crop[0])
    with torch.inference_mode():
        found_BD, found_ND = embedder.embed_images(pixels_BCHW), embedder.embed_texts(TEXTS)
    assert lowest_cosine(found_BD, case.images(base, adapter, pixels_BCHW, tower)) >= 0.9999
    assert (found_ND is not None) == case.texts
    if found_ND is not None:
        expected_ND = case.embedded_texts(base, None if tower else adapter, TEXTS)
        assert lowest_cosine(found_ND, expected_ND) >= 0.9999
        assert found_ND.shape[1] == embedder.width
    if adapter is not None:
        assert lowest_cosine(found_BD, case.images(base, None, pixels_BCHW)) < 0.9995, "the adapter must matter"
    return embedder


@pytest.mark.parametrize("name", EACH)
def test_a_family_embeds_as_transformers_does(name: str, bases: dict[str, Path]) -> None:
    embedder = check(CASES[name], bases[name], None)
    assert isinstance(embedder.images.encoder.tower, VisionTower if name in FAST else PlainTower)
    alone = not CASES[name].texts and (name not in FAST or name in WITHOUT_PROJECTION)
    assert (embedder.images.note is not None and "pooled output" in embedder.images.note) == alone


@pytest.mark.parametrize("tower", [False, True], ids=["whole", "tower"])
@pytest.mark.parametrize("name", EACH)
def test_a_familys_adapter_is_merged(name: str, tower: bool, bases: dict[str, Path], tmp_path: Path) -> None:
    case = CASES[name]
    if tower and case.vision is None:
        pytest.skip("the tower is the whole")
    check(case, bases[name], case.save_adapter(tmp_path / "adapter", bases[name], tower), tower)


OLDER = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value", "o_proj": "output.dense"}
"""An attention's modules today, and as DINOv2 had them until transformers 5."""


@pytest.mark.parametrize(
    "said",
    [
        ["query", "value", "dense"],
        ["attention.attention.query", "attention.attention.value", "attention.output.dense"],
        r".*layer\.\d+\.attention\.(attention\.(query|value)|output\.dense)",
        {"query", "value", "output.dense"},
    ],
)
@pytest.mark.parametrize("name", ["dinov2", pytest.param("dinov2_with_registers", marks=pytest.mark.slow)])
def test_dinov2s_adapters_of_older_transformers(bases: dict[str, Path], tmp_path: Path, name: str, said: Any) -> None:
    """The same adapter under both names, with an alpha of its own for some layers."""
    case = replace(CASES[name], targets=["q_proj", "v_proj", "o_proj"])
    adapter = case.save_adapter(tmp_path / "adapter", bases[name])
    edit_config(adapter / "adapter_config.json", alpha_pattern={"v_proj": 16})
    check(case, bases[name], adapter)
    today = embedder_of(bases[name], adapter)

    def older(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {re.sub(r"[qkvo]_proj", lambda new: OLDER[new[0]], one): weight for one, weight in weights.items()}

    edit_weights(adapter, older)
    targets = sorted(said) if isinstance(said, set) else said
    edit_config(adapter / "adapter_config.json", target_modules=targets, alpha_pattern={"value": 16})
    with torch.inference_mode():
        pixels_BCHW = random_pixels(4, today.spec.crop[0])
        found_BD = embedder_of(bases[name], adapter).embed_images(pixels_BCHW)
        assert torch.equal(found_BD, today.embed_images(pixels_BCHW))


def test_dinov3s_adapters_of_older_transformers(bases: dict[str, Path], tmp_path: Path) -> None:
    """Its layers were in the tower itself."""
    base = bases["dinov3_vit"]
    adapter = CASES["dinov3_vit"].save_adapter(tmp_path / "adapter", base)
    pixels_BCHW = random_pixels(4, 32)
    with torch.inference_mode():
        expected_BD = embedder_of(base, adapter).embed_images(pixels_BCHW)
        edit_weights(
            adapter, lambda weights: {one.replace(".model.model.", ".model."): weights[one] for one in weights}
        )
        assert torch.equal(embedder_of(base, adapter).embed_images(pixels_BCHW), expected_BD)


@pytest.mark.usefixtures("example")
@pytest.mark.parametrize("tower", [None, False, True])
def test_the_worked_example_embeds_images_and_texts(bases: dict[str, Path], tmp_path: Path, tower: bool | None) -> None:
    base = bases["groupvit"]
    adapter = None if tower is None else GROUPVIT.save_adapter(tmp_path / "adapter", base, tower)
    assert check(GROUPVIT, base, adapter, bool(tower)).images.note is None


def test_texts_are_lower_cased_as_the_checkpoints_tokenizer_does(tmp_path: Path) -> None:
    """By Siglip2Tokenizer, as transformers saves it; and BERT's, whose tokens come with types."""
    siglip = dict.fromkeys(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "a", "b", "c", "▁"])
    bert = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"])
    kinds = {"siglip": (transformers.Siglip2Tokenizer, siglip), "chinese_clip": (transformers.BertTokenizer, bert)}
    for name, (kind, words) in kinds.items():
        base = CASES[name].save(tmp_path / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (base / file).unlink()
        kind(vocab={word: number for number, word in enumerate(words)}).save_pretrained(base)
        texts = ["A b C", "c", "a b c"]
        found_ND = embedder_of(base).embed_texts(texts)
        assert found_ND is not None
        assert lowest_cosine(found_ND, CASES[name].embedded_texts(base, None, texts)) >= 0.9999
        assert found_ND[0] @ found_ND[2] > 0.9999 > found_ND[0] @ found_ND[1]


def test_naflex_is_refused_with_what_to_do(tmp_path: Path) -> None:
    base = CASES["siglip2"].save(tmp_path / "base")
    transformers.Siglip2ImageProcessorPil(patch_size=8).save_pretrained(base)
    with pytest.raises(ModelError, match=r"naflex.*siglip2-base-patch16-224.*SiglipImageProcessor"):
        embedder_of(base)
    transformers.SiglipImageProcessorPil(size={"height": 36, "width": 32}).save_pretrained(base)
    with pytest.raises(ModelError, match="not whole patches of 8"):
        embedder_of(base)


def test_siglip_2_takes_images_that_are_no_squares(tmp_path: Path) -> None:
    """Flat patches, row by row, as transformers' own processor cuts them."""
    case, base = CASES["siglip2"], CASES["siglip2"].save(tmp_path / "base")
    transformers.SiglipImageProcessorPil(size={"height": 16, "width": 48}).save_pretrained(base)
    pixels_BCHW = random_pixels(3, 48)[:, :, :16]
    processor = transformers.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=12, do_resize=False)
    images = [image.permute(1, 2, 0).numpy() for image in pixels_BCHW]
    with torch.inference_mode():
        inputs = processor(images, return_tensors="pt")
        expected_BD = embedding_of(case.load(base).get_image_features(**inputs))
        assert lowest_cosine(embedder_of(base).embed_images(pixels_BCHW), expected_BD) >= 0.9999


def test_code_in_a_checkpoint_is_never_run(bases: dict[str, Path], tmp_path: Path) -> None:
    base = CASES["dinov2"].save(tmp_path / "base")
    edit_config(base / "config.json", model_type="jina_clip", auto_map={"AutoModel": "modeling.Model"})
    with pytest.raises(ModelError, match=r"of type jina_clip.*auto_map.*never run.*docs/extending\.md"):
        embedder_of(base)


def test_the_page_holds_the_very_code() -> None:
    assert EXAMPLE.read_text() in (PROJECT / "docs" / "extending.md").read_text()


def test_without_its_line_the_page_is_named(bases: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"of type groupvit: .* clip, clip_vision_model.*docs/extending\.md"):
        embedder_of(bases["groupvit"])


def test_every_family_of_the_registry_is_there() -> None:
    for module, name in (entry.split(":") for entry in registry.FAMILIES.values()):
        family = getattr(__import__(module, fromlist=[name]), name)
        assert issubclass(family, Family) and hasattr(transformers, family.vision_class)


def test_an_embedding_is_found_in_whatever_a_model_returns() -> None:
    one, other = torch.ones(2, 3), torch.zeros(2, 3)
    assert embedding_of(one) is one, "transformers 4: get_image_features"
    assert embedding_of(SimpleNamespace(pooler_output=one)) is one, "transformers 5: projected already"
    assert embedding_of(SimpleNamespace(image_embeds=one, pooler_output=other)) is one
    with pytest.raises(ModelError, match="without a pooled embedding"):
        embedding_of(SimpleNamespace(last_hidden_state=one))


def test_a_whole_model_is_asked_for_its_image_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_clip.models.clip import Clip

    base, pixels_BCHW = save_base(tmp_path / "base"), random_pixels(4)
    with torch.inference_mode():
        expected_BD = MergedEmbedder(find_checkpoint(str(base), None)).embed_images(pixels_BCHW)
        for name, value in (("vision_class", "CLIPModel"), ("accelerator", None), ("vision_config", lambda *_: None)):
            monkeypatch.setattr(Clip, name, value)
        whole = MergedEmbedder(find_checkpoint(str(base), None))
        assert lowest_cosine(whole.embed_images(pixels_BCHW), expected_BD) >= 0.9999


def test_dinov2_of_another_structure_runs_all_the_same(bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its giant has another mlp; and the note that an embedding is pooled stays."""
    load = Dinov2.load_vision

    def changed(self: Dinov2, folder: Path) -> nn.Module:
        vision: Any = load(self, folder)
        for layer in vision.encoder.layer:
            layer.mlp = nn.Sequential(layer.mlp)
        return vision

    monkeypatch.setattr(Dinov2, "load_vision", changed)
    images = embedder_of(bases["dinov2"]).images
    assert isinstance(images.encoder.tower, PlainTower)
    assert "pooled output" in (images.note or "") and "the fast DINOv2 tower does not know" in (images.note or "")
