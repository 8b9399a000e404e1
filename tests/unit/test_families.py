"""A family of models is a file and a line: SigLIP, as docs/extending.md has it, from checkpoint to embedding."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipImageProcessorPil, SiglipModel

from helpers.models import lowest_cosine, quiet_peft, random_pixels, save_adapter, save_base, spread
from lora_clip.errors import ModelError
from lora_clip.models import base as registry
from lora_clip.models.checkpoint import find_checkpoint
from lora_clip.models.compute import Compute
from lora_clip.models.embedder import MergedEmbedder
from lora_clip.models.generic import Family, PlainTower, embedding_of
from lora_clip.models.quiet import quiet_transformers

PROJECT = Path(__file__).parents[2]
EXAMPLE = PROJECT / "examples" / "siglip.py"
PIXELS_BCHW = random_pixels(4)
TEXTS = ["a b", "c"]


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example's file and its line in the registry."""
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    monkeypatch.setitem(registry.FAMILIES, "siglip", "siglip:Siglip")
    monkeypatch.delitem(sys.modules, "siglip", raising=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SigLIP of random weights, its processor and a tokenizer of letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("siglip") / "base"
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"vocab_size": 64, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = {**tower, **tokens, "projection_size": 32}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config={**tower, "image_size": 32, "patch_size": 8}))
    spread(model, seed=0)
    letters = Tokenizer(models.WordLevel({"?": 0, "</s>": 1, "a": 2, "b": 3, "c": 4}, unk_token="?"))
    letters.pre_tokenizer = pre_tokenizers.Whitespace()
    with quiet_transformers():
        model.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=letters, pad_token="</s>", unk_token="?").save_pretrained(folder)
    return folder


def reference(base: Path, adapter: Path | None, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of the images and texts by transformers and PEFT alone."""
    from peft import PeftModel

    with quiet_transformers(), quiet_peft():
        model: Any = SiglipModel.from_pretrained(base).eval()
        part = {"SiglipModel": model, "SiglipVisionModel": model.vision_model}[kind]
        if adapter is not None:
            PeftModel.from_pretrained(part, str(adapter)).eval()
    values = SiglipImageProcessorPil.from_pretrained(base)(list(PIXELS_BCHW), return_tensors="pt")["pixel_values"]
    ids = torch.tensor([[2, 3, *[1] * 6], [4, *[1] * 7]])
    with torch.inference_mode():
        images, texts = model.get_image_features(pixel_values=values), model.get_text_features(input_ids=ids)
    return tuple(functional.normalize(embedding_of(one), dim=-1) for one in (images, texts))  # type: ignore[return-value]


@pytest.mark.usefixtures("family")
@pytest.mark.parametrize("kind", [None, "SiglipModel", "SiglipVisionModel"])
def test_the_worked_example_embeds_images_and_texts(base: Path, tmp_path: Path, kind: str | None) -> None:
    adapter = save_adapter(tmp_path / "adapter", base, kind) if kind else None
    embedder = MergedEmbedder(find_checkpoint(str(base), adapter and str(adapter)), Compute(batch_size=4))  # type: ignore[arg-type]
    images_BD, texts_ND = reference(base, adapter, kind or "SiglipModel")
    with torch.inference_mode():
        found_BD, found_ND = embedder.embed_images(PIXELS_BCHW), embedder.embed_texts(TEXTS)
    assert found_ND is not None and embedder.width == 32
    assert lowest_cosine(found_BD, images_BD) >= 0.9999
    assert lowest_cosine(found_ND, texts_ND) >= 0.9999
    assert isinstance(embedder.images.encoder.tower, PlainTower) and embedder.images.note is None
    if adapter is not None:
        assert lowest_cosine(found_BD, reference(base, None, "SiglipModel")[0]) < 0.999, "the adapter must matter"


def test_the_page_holds_the_very_code() -> None:
    assert EXAMPLE.read_text() in (PROJECT / "docs" / "extending.md").read_text()


def test_without_its_line_the_page_is_named(base: Path) -> None:
    with pytest.raises(ModelError, match=r"of type siglip: .* clip, clip_vision_model.*docs/extending\.md"):
        MergedEmbedder(find_checkpoint(str(base), None))


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

    base = save_base(tmp_path / "base")
    with torch.inference_mode():
        expected_BD = MergedEmbedder(find_checkpoint(str(base), None)).embed_images(PIXELS_BCHW)
        for name, value in (("vision_class", "CLIPModel"), ("accelerator", None), ("vision_config", lambda *_: None)):
            monkeypatch.setattr(Clip, name, value)
        whole = MergedEmbedder(find_checkpoint(str(base), None))
        assert lowest_cosine(whole.embed_images(PIXELS_BCHW), expected_BD) >= 0.9999
