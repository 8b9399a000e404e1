"""open_clip's own checkpoints, against a reimplementation in plain torch: embeddings, pixels, adapters, refusals."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional

from helpers.images import encode, photo
from helpers.models import PREFIX, edit_config, edit_weights, lowest_cosine, random_pixels, save_base, save_trained
from helpers.open_clip_models import SIZE, edit_part, save
from lora_clip.errors import ModelError
from lora_clip.models.checkpoint import find_checkpoint
from lora_clip.models.clip_tower import VisionTower
from lora_clip.models.digests import digests, file_digest
from lora_clip.models.embedder import MergedEmbedder
from lora_clip.models.generic import PlainTower
from lora_clip.models.open_clip import clean
from lora_clip.pixels.decode import prepare
from lora_clip.types import PreprocessSpec

KINDS = ("clip", "quick", "custom", "worldwide", "siglip")
PIXELS_BCHW = random_pixels(4, SIZE)
TEXTS = ["a b", "c", "d a b c a d"]


def embedder_of(base: Path, adapter: Path | None = None) -> MergedEmbedder:
    return MergedEmbedder(find_checkpoint(str(base), adapter and str(adapter)))  # type: ignore[arg-type]


def normalised(spec: PreprocessSpec) -> torch.Tensor:
    mean, std = (torch.tensor(one)[:, None, None] for one in (spec.mean, spec.std))
    return (PIXELS_BCHW / 255 - mean) / std


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_images_and_texts_are_embedded_as_open_clip_does(kind: str, tmp_path: Path) -> None:
    model, base = save(kind, tmp_path / "base")
    embedder = embedder_of(base)
    expected_BD = model.encode_image(normalised(embedder.spec))
    assert lowest_cosine(embedder.embed_images(PIXELS_BCHW), expected_BD) >= 1 - 1e-6
    assert isinstance(embedder.images.encoder.tower, PlainTower if kind == "siglip" else VisionTower)
    assert embedder.images.note is None
    words = {"a": 2, "b": 3, "c": 4, "d": 5}
    # by its highest token a text of CLIP's ends; letters() ends it by 1, so there the highest is a letter
    tokens = [[*(words[one] for one in text.split()), 1] for text in TEXTS]
    length = 16 if kind == "siglip" else max(map(len, tokens))
    tokens_NT = torch.tensor([one + [1] * (length - len(one)) for one in tokens])
    found_ND = embedder.embed_texts(TEXTS)
    assert found_ND is not None and found_ND.shape[1] == embedder.width
    assert lowest_cosine(found_ND, model.encode_text(tokens_NT)) >= 1 - 1e-6


def test_half_precision_weights_are_read_in_float32(tmp_path: Path) -> None:
    model, base = save("siglip", tmp_path / "base")
    file = base / "open_clip_model.safetensors"
    save_file({name: one.half() for name, one in load_file(file).items()}, file)
    embedder = embedder_of(base)
    with torch.inference_mode():
        expected_BD = model.half().float().encode_image(normalised(embedder.spec))
        assert lowest_cosine(embedder.embed_images(PIXELS_BCHW), expected_BD) >= 1 - 1e-6


def test_its_fingerprint_follows_its_own_config(tmp_path: Path) -> None:
    _, base = save("clip", tmp_path / "base")
    found = digests(find_checkpoint(str(base), None))["base"]
    assert found["config"] == file_digest(base / "open_clip_config.json")


def test_transformers_form_comes_first_where_it_is_known(tmp_path: Path) -> None:
    """Repositories have both; but code of their own (auto_map) is never run, so there open_clip's files are read."""
    model, base = save("clip", tmp_path / "base")
    own = save_base(tmp_path / "own")
    for file in own.iterdir():
        if not (base / file.name).exists():
            (base / file.name).write_bytes(file.read_bytes())
    with torch.inference_mode():
        assert torch.equal(embedder_of(base).embed_images(PIXELS_BCHW), embedder_of(own).embed_images(PIXELS_BCHW))
        edit_config(base / "config.json", auto_map={"AutoModel": "own.Model"})
        embedder = embedder_of(base)
        expected_BD = model.encode_image(normalised(embedder.spec))
        assert lowest_cosine(embedder.embed_images(PIXELS_BCHW), expected_BD) >= 1 - 1e-6


def test_peft_on_open_clips_own_vision_transformer(tmp_path: Path) -> None:
    model, base = save("clip", tmp_path / "base")
    visual: Any = model.visual
    config = LoraConfig(r=4, target_modules=["c_fc", "attn"])
    adapter = save_trained(tmp_path / "adapter", visual.transformer, config)
    edit_config(adapter / "adapter_config.json", base_model_name_or_path=None)
    plain, adapted = embedder_of(base), embedder_of(base, adapter)
    with torch.inference_mode():
        expected_BD = model.encode_image(normalised(adapted.spec))
        assert lowest_cosine(plain.embed_images(PIXELS_BCHW), expected_BD) < 0.999
        assert lowest_cosine(adapted.embed_images(PIXELS_BCHW), expected_BD) >= 1 - 1e-6


@pytest.mark.parametrize("within", ["", "visual.trunk."])
def test_peft_on_the_trunk_of_open_clips_siglip(within: str, tmp_path: Path) -> None:
    """On timm's names, of the trunk itself or of the whole model."""
    model, base = save("siglip", tmp_path / "base")
    visual: Any = model.visual
    adapter = save_trained(
        tmp_path / "adapter",
        visual.trunk,
        LoraConfig(r=4, target_modules=["qkv", "proj", "fc1"], exclude_modules=r"(patch_embed|attn_pool)\..*"),
    )
    edit_config(adapter / "adapter_config.json", base_model_name_or_path=None)
    edit_weights(adapter, lambda weights: {one.replace(PREFIX, PREFIX + within): weights[one] for one in weights})
    plain, adapted = embedder_of(base), embedder_of(base, adapter)
    with torch.inference_mode():
        expected_BD = model.encode_image(normalised(adapted.spec))
        assert lowest_cosine(plain.embed_images(PIXELS_BCHW), expected_BD) < 0.999
        assert lowest_cosine(adapted.embed_images(PIXELS_BCHW), expected_BD) >= 1 - 1e-6


# --- pixels ---


def by_torchvision(image: Image.Image, mode: str) -> Image.Image:
    """open_clip's evaluation transform, on Pillow as torchvision has it."""
    resample, (width, height) = Image.Resampling.BICUBIC, image.size
    if mode == "squash":
        return image.resize((SIZE, SIZE), resample)
    if mode == "longest":
        ratio = max(height / SIZE, width / SIZE)
        image, out = (
            image.resize((round(width / ratio), round(height / ratio)), resample),
            Image.new("RGB", (SIZE, SIZE)),
        )
        out.paste(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
        return out
    short = min(width, height)
    image = image.resize((int(SIZE * width / short), int(SIZE * height / short)), resample)
    left, top = (round((side - SIZE) / 2) for side in image.size)
    return image.crop((left, top, left + SIZE, top + SIZE))


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_pixels_are_those_of_open_clip(mode: str, tmp_path: Path) -> None:
    """To the pixel: half of one is rounded to the even one when an image is cropped, where transformers rounds down."""
    _, base = save("clip", tmp_path / "base")
    edit_part(base, "", "preprocess_cfg", resize_mode=mode, interpolation="bicubic", mean=[0.1, 0.2, 0.3])
    spec = embedder_of(base).spec
    assert spec.mean == (0.1, 0.2, 0.3) and spec.std[0] == 0.26862954
    for width, height in ((35, 32), (39, 32), (71, 64), (64, 35), (200, 9), (9, 90), (32, 32)):
        data = encode(photo(width, height, 3), "PNG")
        out_CHW = torch.empty(3, SIZE, SIZE, dtype=torch.uint8)
        prepare(data, spec, out_CHW)
        with Image.open(io.BytesIO(data)) as image:
            expected = np.asarray(by_torchvision(image.convert("RGB"), mode)).transpose(2, 0, 1)
        assert np.abs(out_CHW.numpy().astype(int) - expected).max() <= 2, (width, height)


def test_the_specs_of_other_models_are_what_they_were() -> None:
    spec = PreprocessSpec(32, (32, 32), "bicubic", 1 / 255, (0.5,), (0.5,))
    assert list(spec.to_json()) == ["resize", "crop", "interpolation", "scale", "mean", "std"]


# --- texts ---


def test_texts_are_cleaned_as_open_clip_does() -> None:
    text = "  A &amp;amp; b_C,\n d! "
    assert clean(text, "whitespace") == "A & b_C, d!"
    assert clean(text, "lower") == "a & b_c, d!"
    assert clean(text, "canonicalize") == "a b c d"


def test_without_a_tokenizer_images_are_embedded_and_texts_say_what_to_do(tmp_path: Path) -> None:
    _, base = save("siglip", tmp_path / "base")
    for file in base.glob("*token*"):
        file.unlink()
    embedder = embedder_of(base)
    assert embedder.embed_images(PIXELS_BCHW).shape == (4, 48)
    with pytest.raises(ModelError, match=r"no tokenizer.*only images.*some/tokenizer.*save_pretrained"):
        embedder.embed_texts(["a"])


# --- refusals ---


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("", {"multimodal_cfg": {}}, "a CoCa"),
        ("", {"of_the_future": 1}, r"model_cfg\.of_the_future=1 is not known"),
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, "a ResNet"),
        ("vision_cfg", {"timm_model_name": "convnext_base"}, "timm's convnext_base"),
        ("vision_cfg", {"timm_model_name": "fastvit_mci2"}, "timm's fastvit_mci2"),
        ("vision_cfg", {"timm_model_name": "eva_giant_patch14_224"}, "timm's eva_giant_patch14_224"),
        ("vision_cfg", {"pool_type": "avg"}, r"vision_cfg\.pool_type=avg, which transformers' model does not have"),
        ("vision_cfg", {"ls_init_value": 0.1}, r"vision_cfg\.ls_init_value=0\.1"),
        ("vision_cfg", {"no_ln_pre": True}, r"vision_cfg\.no_ln_pre=True"),
        ("vision_cfg", {"image_size": [32, 48]}, "no square"),
        ("text_cfg", {"hf_model_name": "xlm-roberta-base"}, r"xlm-roberta-base \(text_cfg"),
        ("text_cfg", {"embed_cls": True}, r"text_cfg\.embed_cls=True"),
        ("text_cfg", {"tokenizer_kwargs": {"strip_sep_token": True}}, "tokenizer_kwargs"),
    ],
)
def test_what_transformers_does_not_have_is_refused(
    part: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    _, base = save("clip", tmp_path / "base")
    edit_part(base, part, **changes)
    with pytest.raises(ModelError, match=rf"{message}.*transformers' form"):
        embedder_of(base)


def test_weights_that_do_not_map_are_refused(tmp_path: Path) -> None:
    _, base = save("clip", tmp_path / "base")
    file = base / "open_clip_model.safetensors"
    weights = load_file(file)
    save_file({**weights, "visual.transformer.resblocks.0.ls_1.gamma": torch.ones(48)}, file)
    with pytest.raises(ModelError, match=r"1 of \d+ weights .*no counterpart.*resblocks\.0\.ls_1\.gamma"):
        assert embedder_of(base).images
    save_file({name: one for name, one in weights.items() if "1.mlp.c_fc" not in name}, file)
    with pytest.raises(ModelError, match=r"lacks 2 weights of open_clip's CLIP vision model.*mlp\.fc1"):
        assert embedder_of(base).images
    save_file({**weights, "visual.proj": torch.ones(48, 20)}, file)
    with pytest.raises(ModelError, match="cannot be loaded as open_clip's CLIP vision model"):
        assert embedder_of(base).images
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ModelError, match="cannot be read"):
        assert embedder_of(base).images


@pytest.mark.parametrize("text", ["no JSON", "[1]", '{"model_cfg": 1}', '{"model_cfg": {"vision_cfg": {}}}'])
def test_a_config_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    _, base = save("clip", tmp_path / "base")
    (base / "open_clip_config.json").write_text(text)
    with pytest.raises(ModelError, match=r"open_clip_config\.json"):
        embedder_of(base)


def test_pickled_weights_are_refused_with_what_to_do(tmp_path: Path) -> None:
    _, base = save("clip", tmp_path / "base")
    (base / "open_clip_model.safetensors").rename(base / "open_clip_pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickled weights are not loaded.*convert it once: docs/models\.md"):
        embedder_of(base)


def test_the_lines_that_convert_pickled_weights(tmp_path: Path) -> None:
    """Those of docs/models.md, run."""
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    lines = page.partition("## open_clip")[2].partition("```python\n")[2].partition("```")[0]
    model, base = save("clip", tmp_path / "base")
    (base / "open_clip_model.safetensors").unlink()
    torch.save(model.state_dict(), base / "open_clip_pytorch_model.bin")
    exec(compile(lines.replace("/models/mine", str(base)), "docs/models.md", "exec"), {})
    with torch.inference_mode():
        expected_BD = functional.normalize(model.encode_image(normalised(embedder_of(base).spec)), dim=-1)
        assert lowest_cosine(embedder_of(base).embed_images(PIXELS_BCHW), expected_BD) >= 1 - 1e-6
