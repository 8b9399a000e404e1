"""Small random models of every family, saved as transformers does, and what transformers and PEFT make of them.

case = CASES["siglip"]
base = case.save(tmp_path / "base")                       # model, image processor, tokenizer
adapter = case.save_adapter(tmp_path / "adapter", base)   # by PEFT, on the whole model
case.images(base, adapter, pixels_BCHW)                   # (B, D) of unit norm
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.nn import functional

from helpers.models import quiet_peft, spread
from lora_clip.models.generic import embedding_of
from lora_clip.models.quiet import quiet_transformers

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TOWER, "image_size": 32, "patch_size": 8}
TEXT = {
    **TOWER,
    "vocab_size": 64,
    "max_position_embeddings": 16,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
CLIP_PROCESSOR = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
SQUASH = {"size": {"height": 32, "width": 32}}
WORDS = {"?": 0, "</s>": 1, "a": 2, "b": 3, "c": 4, "d": 5}
DINO = {**VISION, "num_register_tokens": 2}
EFFICIENT = {
    "image_size": 32,
    "in_channels": [32, 8],
    "out_channels": [8, 16],
    "kernel_sizes": [3, 3],
    "strides": [1, 2],
    "num_block_repeats": [1, 1],
    "expand_ratios": [1, 6],
    "hidden_dim": 32,
    "depthwise_padding": [],
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
    "squeeze_expansion_ratio": 0.25,
}


@dataclass(frozen=True)
class Case:
    """A family: transformers' class, its config's values, the PIL form of its image processor, an adapter's targets."""

    model: str
    config: str
    values: dict[str, Any]
    processor: str
    processor_values: dict[str, Any]
    targets: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])
    texts: bool = True
    padding: Any = True
    embed: Callable[[Any, torch.Tensor], torch.Tensor] | None = None
    embed_texts: Callable[[Any, Any], torch.Tensor] | None = None
    vision: str | None = "vision_model"
    """The vision tower's name in the whole model."""

    def save(self, folder: Path) -> Path:
        """The model, its processor and a tokenizer of letters; returns the folder."""
        with torch.random.fork_rng(), quiet_transformers():
            torch.manual_seed(0)
            model = getattr(transformers, self.model)(getattr(transformers, self.config)(**self.values)).eval()
            spread(model, seed=0)
            model.save_pretrained(folder)
        if self.processor.endswith("Pil"):
            getattr(transformers, self.processor)(**self.processor_values).save_pretrained(folder)
        else:
            config = {"image_processor_type": self.processor, **self.processor_values}
            (folder / "preprocessor_config.json").write_text(json.dumps(config))
        if self.texts:
            letters().save_pretrained(folder)
        return folder

    def load(self, base: Path) -> Any:
        """The whole model, by transformers alone."""
        with quiet_transformers():
            return getattr(transformers, self.model).from_pretrained(base).eval()

    def save_adapter(self, folder: Path, base: Path, tower: bool = False) -> Path:
        """An adapter of random weights on the whole model or on its vision tower."""
        whole = self.load(base)
        with quiet_peft():
            model = get_peft_model(self._part(whole, tower), LoraConfig(r=4, lora_alpha=8, target_modules=self.targets))
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            model.save_pretrained(str(folder), save_embedding_layers=False)
        return folder

    def _part(self, whole: Any, tower: bool) -> nn.Module:
        return getattr(whole, self.vision) if tower and self.vision else whole

    def adapted(self, base: Path, adapter: Path | None, tower: bool = False) -> Any:
        """The whole model with the unmerged adapter in it."""
        whole = self.load(base)
        if adapter is not None:
            with quiet_peft():
                PeftModel.from_pretrained(self._part(whole, tower), str(adapter)).eval()  # puts its layers into `whole`
        return whole

    @torch.inference_mode()
    def images(self, base: Path, adapter: Path | None, pixels_BCHW: torch.Tensor, tower: bool = False) -> torch.Tensor:
        """Embeddings (B, D) of unit norm of images that have the model's size already."""
        whole, values = self.adapted(base, adapter, tower), self.values_of(base, pixels_BCHW)
        if self.embed:
            return functional.normalize(self.embed(whole, values), dim=-1)
        return functional.normalize(embedding_of(getattr(whole, "get_image_features", whole)(values)), dim=-1)

    def values_of(self, base: Path, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """What the checkpoint's own processor makes of images; of those that need torchvision, their arithmetic."""
        if not self.processor.endswith("Pil"):
            if not self.processor_values.get("do_normalize", True):
                return pixels_BCHW / 255
            mean, std = (
                torch.tensor(self.processor_values[f"image_{name}"])[:, None, None] for name in ("mean", "std")
            )
            return (pixels_BCHW / 255 - mean) / std
        processor = getattr(transformers, self.processor).from_pretrained(base)
        return processor([image.permute(1, 2, 0).numpy() for image in pixels_BCHW], return_tensors="pt")["pixel_values"]

    @torch.inference_mode()
    def embedded_texts(self, base: Path, adapter: Path | None, texts: list[str]) -> torch.Tensor:
        """Embeddings (N, D) of unit norm of texts."""
        whole, tokenizer = self.adapted(base, adapter), transformers.AutoTokenizer.from_pretrained(base)
        tokens = tokenizer(texts, padding=self.padding, truncation=True, max_length=16, return_tensors="pt")
        ask = self.embed_texts or (lambda whole, tokens: embedding_of(whole.get_text_features(**tokens)))
        return functional.normalize(ask(whole, tokens), dim=-1)


def letters() -> Any:
    """A tokenizer that knows four words, ends each text, and lower-cases."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel(WORDS, unk_token="?"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="</s>", unk_token="?", eos_token="</s>", model_max_length=16
    )


def patches(whole: Any, values_BCHW: torch.Tensor) -> torch.Tensor:
    """SigLIP 2's image features, its patches cut by transformers' own function."""
    from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

    cut = torch.stack([torch.tensor(convert_image_to_patches(image.numpy(), 8)) for image in values_BCHW])
    shapes, mask = torch.tensor([[4, 4]] * len(cut)), torch.ones(cut.shape[:2], dtype=torch.int64)
    return embedding_of(whole.get_image_features(cut, mask, shapes))


def both(text: dict[str, Any], vision: dict[str, Any] = VISION, **more: Any) -> dict[str, Any]:
    """A whole model's values."""
    return {"text_config": {**TEXT, **text}, "vision_config": vision, **more}


def without_mask(whole: Any, tokens: Any) -> torch.Tensor:
    """SigLIP's text features."""
    return embedding_of(whole.get_text_features(input_ids=tokens["input_ids"]))


def asked(tokens: Any) -> dict[str, torch.Tensor]:
    """What BLIP's text encoder takes."""
    return {name: tokens[name] for name in ("input_ids", "attention_mask")}


def masked(whole: Any, tokens: Any) -> torch.Tensor:
    """TIPSv2's text features."""
    return embedding_of(whole.get_text_features(**asked(tokens)))


TIPS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
BARE = {**SQUASH, "do_normalize": False}
PROJECTED: dict[str, Any] = {"projection_dim": 16}
BERT = {"type_vocab_size": 2, "max_position_embeddings": 16}
BERT_TARGETS = ["q_proj", "v_proj", "query", "value"]
CASES = {
    "siglip": Case(
        "SiglipModel",
        "SiglipConfig",
        both({"projection_size": 32}),
        "SiglipImageProcessorPil",
        SQUASH,
        padding="max_length",
        embed_texts=without_mask,
    ),
    "siglip_vision_model": Case(
        "SiglipVisionModel", "SiglipVisionConfig", VISION, "SiglipImageProcessorPil", SQUASH, texts=False, vision=None
    ),
    "siglip2": Case(
        "Siglip2Model",
        "Siglip2Config",
        both({"projection_size": 32}, {**TOWER, "num_patches": 9, "patch_size": 8}),
        "SiglipImageProcessorPil",
        SQUASH,
        padding="max_length",
        embed=patches,
        embed_texts=without_mask,
    ),
    "metaclip_2": Case(
        "MetaClip2Model", "MetaClip2Config", both({}, **PROJECTED), "CLIPImageProcessorPil", CLIP_PROCESSOR
    ),
    "metaclip_2_vision_model": Case(
        "MetaClip2VisionModelWithProjection",
        "MetaClip2VisionConfig",
        {**VISION, **PROJECTED},
        "CLIPImageProcessorPil",
        CLIP_PROCESSOR,
        texts=False,
    ),
    "altclip": Case(
        "AltCLIPModel",
        "AltCLIPConfig",
        both({"max_position_embeddings": 18, "project_dim": 24, "type_vocab_size": 1}, **PROJECTED),
        "CLIPImageProcessorPil",
        CLIP_PROCESSOR,
        BERT_TARGETS,
    ),
    "chinese_clip": Case(
        "ChineseCLIPModel",
        "ChineseCLIPConfig",
        both(BERT, **PROJECTED),
        "ChineseCLIPImageProcessorPil",
        CLIP_PROCESSOR,
        BERT_TARGETS,
    ),
    "align": Case(
        "AlignModel",
        "AlignConfig",
        both(BERT, EFFICIENT, **PROJECTED),
        "EfficientNetImageProcessorPil",
        {**SQUASH, "rescale_offset": True, "rescale_factor": 1 / 127.5, "do_normalize": False, "include_top": False},
        ["query", "value", "expand_conv", "project_conv"],
    ),
    "aimv2": Case("Aimv2Model", "Aimv2Config", both({}, **PROJECTED), "CLIPImageProcessorPil", CLIP_PROCESSOR),
    "aimv2_vision_model": Case(
        "Aimv2VisionModel",
        "Aimv2VisionConfig",
        VISION,
        "CLIPImageProcessorPil",
        CLIP_PROCESSOR,
        texts=False,
        vision=None,
    ),
    "blip": Case(
        "BlipForImageTextRetrieval",
        "BlipConfig",
        both({**BERT, "encoder_hidden_size": 32}, VISION, image_text_hidden_size=16),
        "BlipImageProcessorPil",
        SQUASH,
        ["qkv", "query", "value"],
        embed=lambda whole, values: whole.vision_proj(whole.vision_model(values)[0][:, 0]),
        embed_texts=lambda whole, tokens: whole.text_proj(whole.text_encoder(**asked(tokens))[0][:, 0]),
    ),
    "tipsv2": Case("Tipsv2Model", "Tipsv2Config", both({}, TIPS), "Tipsv2ImageProcessor", BARE, embed_texts=masked),
    "tipsv2_vision_model": Case(
        "Tipsv2VisionModel", "Tipsv2VisionConfig", TIPS, "Tipsv2ImageProcessor", BARE, texts=False, vision=None
    ),
    "vision-text-dual-encoder": Case(
        "VisionTextDualEncoderModel",
        "VisionTextDualEncoderConfig",
        {
            "vision_config": {**VISION, "model_type": "clip_vision_model"},
            "text_config": {**TEXT, **BERT, "model_type": "bert"},
            **PROJECTED,
        },
        "CLIPImageProcessorPil",
        CLIP_PROCESSOR,
        BERT_TARGETS,
    ),
    "clipseg": Case(
        "CLIPSegModel",
        "CLIPSegConfig",
        both({}, **PROJECTED),
        "ViTImageProcessorPil",
        {"size": {"height": 40, "width": 40}},
    ),
    "dinov2": Case(
        "Dinov2Model",
        "Dinov2Config",
        {**VISION, "image_size": 48},
        "BitImageProcessorPil",
        CLIP_PROCESSOR,
        texts=False,
        vision=None,
    ),
    "dinov2_with_registers": Case(
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        DINO,
        "BitImageProcessorPil",
        CLIP_PROCESSOR,
        texts=False,
        vision=None,
    ),
    "dinov3_vit": Case(
        "DINOv3ViTModel",
        "DINOv3ViTConfig",
        DINO,
        "DINOv3ViTImageProcessorFast",
        {**SQUASH, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 2},
        texts=False,
        vision=None,
    ),
    "dinov3_convnext": Case(
        "DINOv3ConvNextModel",
        "DINOv3ConvNextConfig",
        {"image_size": 32, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]},
        "DINOv3ViTImageProcessorFast",
        {**SQUASH, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 2},
        ["pointwise_conv1"],
        texts=False,
        vision=None,
    ),
}
