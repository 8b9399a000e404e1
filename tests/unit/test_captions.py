"""Captions in a job: the text tower merged, cast and on batches of one shape, against transformers and PEFT alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel

from helpers.families import CASES, Case
from helpers.models import load_class, lowest_cosine, quiet_peft, save_adapter, save_base
from lora_clip.demo import DEMO
from lora_clip.errors import AdapterError, ModelError
from lora_clip.models import text
from lora_clip.models.checkpoint import find_checkpoint
from lora_clip.models.compute import Compute
from lora_clip.models.embedder import MergedEmbedder
from lora_clip.models.generic import embedding_of
from lora_clip.models.text import CaptionEncoder

CAPTIONS = ["a", "A b", "a b c d", "d " * 12, "c a " * 40, "nothing that is known"]
WITH_TEXTS = [
    pytest.param(name, marks=[pytest.mark.slow] * (name not in ("siglip", "metaclip_2")))
    for name, case in CASES.items()
    if case.texts
]


@pytest.fixture(autouse=True)
def short_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some that lie within the 16 positions of the tests' models."""
    monkeypatch.setattr(text, "LENGTHS", (3, 6))


def captions_of(
    base: Path, adapter: Path | None = None, dtype: torch.dtype = torch.float32, size: int = 4
) -> CaptionEncoder:
    checkpoint = find_checkpoint(str(base), str(adapter) if adapter else None)
    return MergedEmbedder(checkpoint, Compute(dtype, batch_size=size)).load(captions=True).captions.encoder


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("name", WITH_TEXTS)
def test_captions_are_embedded_as_transformers_does(name: str, adapted: bool, tmp_path: Path) -> None:
    case = CASES[name]
    base = case.save(tmp_path / "base")
    adapter = case.save_adapter(tmp_path / "adapter", base) if adapted else None
    found_ND = captions_of(base, adapter)(["", *CAPTIONS])
    assert lowest_cosine(found_ND, case.embedded_texts(base, adapter, ["", *CAPTIONS])) >= 0.9999
    if adapter:
        assert lowest_cosine(found_ND, case.embedded_texts(base, None, ["", *CAPTIONS])) < 0.999


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path]:
    """A family whose text tower takes a mask, and one whose texts are causal, stand for all."""
    folder = tmp_path_factory.mktemp("clip")
    return CASES["metaclip_2"], CASES["metaclip_2"].save(folder / "base")


@pytest.mark.parametrize("name", ["metaclip_2", "chinese_clip", "siglip"])
def test_a_caption_does_not_depend_on_its_neighbours(name: str, tmp_path: Path) -> None:
    encoder = captions_of(CASES[name].save(tmp_path / "base"))
    alone = torch.stack([encoder([one])[0] for one in CAPTIONS])
    many = [CAPTIONS[at % len(CAPTIONS)] for at in range(50)]
    assert torch.equal(encoder(CAPTIONS), alone) and torch.equal(encoder(CAPTIONS[::-1]).flip(0), alone)
    assert torch.equal(encoder(many), alone[torch.arange(50) % len(CAPTIONS)])
    assert torch.equal(encoder([CAPTIONS[4]] * 16), alone[4].repeat(16, 1)), "whole batches without padding"


def test_images_without_caption_have_one_embedding_that_is_the_empty_texts(clip: tuple[Case, Path]) -> None:
    case, base = clip
    encoder = captions_of(base)
    found_ND = encoder(["", "a b", "", ""])
    assert torch.equal(found_ND[0], found_ND[2]) and torch.equal(found_ND[0], found_ND[3])
    assert lowest_cosine(found_ND[:1], case.embedded_texts(base, None, [""])) >= 0.9999
    assert encoder([]).shape == (0, found_ND.shape[1]) and torch.equal(encoder(["", ""]), found_ND[2:])


def test_it_is_the_text_tower_of_embed_text(clip: tuple[Case, Path], tmp_path: Path) -> None:
    case, base = clip
    adapter = case.save_adapter(tmp_path / "adapter", base)
    queries_ND = MergedEmbedder(find_checkpoint(str(base), str(adapter))).embed_texts(CAPTIONS)
    assert queries_ND is not None and lowest_cosine(captions_of(base, adapter)(CAPTIONS), queries_ND) >= 0.99999


def test_a_weighted_sum_of_adapters(clip: tuple[Case, Path], tmp_path: Path) -> None:
    case, base = clip
    adapter = str(case.save_adapter(tmp_path / "adapter", base))
    checkpoint = find_checkpoint(str(base), {adapter: 0.5})
    encoder = MergedEmbedder(checkpoint, Compute(batch_size=4)).load(captions=True).captions.encoder
    queries_ND = MergedEmbedder(checkpoint).embed_texts(CAPTIONS)
    assert queries_ND is not None and lowest_cosine(encoder(CAPTIONS), queries_ND) >= 0.99999
    assert lowest_cosine(encoder(CAPTIONS), case.embedded_texts(base, Path(adapter), CAPTIONS)) < 0.9999


def test_an_adapter_of_the_vision_tower_leaves_texts_as_they_are(clip: tuple[Case, Path], tmp_path: Path) -> None:
    case, base = clip
    adapter = case.save_adapter(tmp_path / "adapter", base, tower=True)
    assert torch.equal(captions_of(base, adapter)(CAPTIONS), captions_of(base)(CAPTIONS))


def test_another_dtype_runs_where_it_is_close_enough(clip: tuple[Case, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    case, base = clip
    embedder = MergedEmbedder(find_checkpoint(str(base), None), Compute(torch.bfloat16, batch_size=4))
    found_ND = embedder.captions.encoder(CAPTIONS)
    assert embedder.captions.note is None and found_ND.dtype == torch.float32
    assert 0.999 <= lowest_cosine(found_ND, case.embedded_texts(base, None, CAPTIONS)) < 0.9999999
    other = MergedEmbedder(find_checkpoint(str(base), None), Compute(torch.bfloat16, batch_size=4)).load()
    monkeypatch.setattr("lora_clip.models.captions.least_cosine", lambda dtype: 0.9999 if dtype.itemsize == 4 else 1.0)
    assert other.captions.note == "the text tower computes in float32, since it differs too much in bfloat16"
    assert torch.equal(other.captions.encoder(CAPTIONS), captions_of(base)(CAPTIONS))


def test_a_text_tower_that_would_run_wrongly_is_refused(
    clip: tuple[Case, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, base = clip
    adapter = case.save_adapter(tmp_path / "adapter", base)
    with monkeypatch.context() as patch:  # as a merge would be that PEFT made wrongly
        patch.setattr(text, "merge", lambda model, folder: model.unload())
        with pytest.raises(AdapterError, match=r"what would run in float32 on captions differs from the unmerged"):
            captions_of(base, adapter)
    monkeypatch.setattr(CaptionEncoder, "_lengths", lambda self, tokens: [3] * len(tokens["input_ids"]))
    with pytest.raises(ModelError, match="on captions differs"):
        captions_of(base)


def test_texts_of_another_width_than_images_are_refused(tmp_path: Path) -> None:
    values = {**CASES["siglip"].values}
    values["text_config"] = {**values["text_config"], "projection_size": 24}
    base = Case("SiglipModel", "SiglipConfig", values, "SiglipImageProcessorPil", CASES["siglip"].processor_values)
    with pytest.raises(ModelError, match="texts are 24 wide, those of images 32"):
        captions_of(base.save(tmp_path / "base"))


def test_a_model_without_its_tokenizer_or_the_weights_of_its_text_tower(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    with pytest.raises(ModelError, match="has no tokenizer"):
        captions_of(base, save_adapter(tmp_path / "adapter", base))


@pytest.mark.parametrize("adapter", [None, DEMO / "adapter"])
def test_clip_with_its_own_tokenizer_and_context(adapter: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    model, tokenizer = load_class("CLIPModel", DEMO / "base"), transformers.CLIPTokenizer.from_pretrained(DEMO / "base")
    if adapter:
        with quiet_peft():
            PeftModel.from_pretrained(model, str(adapter)).eval()
    captions = ["a red apple", "", "An Apple!", "two dogs and a cat " * 5, "a house by the sea " * 40]
    tokens = tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        expected_ND = embedding_of(model.get_text_features(**tokens))  # type: ignore[operator]
    assert lowest_cosine(captions_of(DEMO / "base", adapter)(captions), expected_ND) >= 0.9999
