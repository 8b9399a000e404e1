"""Tiny real CLIP models, processors and PEFT adapters in a folder, and what they should give: helpers of the tests.

base = save_base(tmp_path / "base")
adapter = save_adapter(tmp_path / "adapter", base, "CLIPModel", target_modules=["q_proj", "v_proj"])
reference(base, adapter, "CLIPModel", random_pixels(4))     # by transformers and PEFT alone, (4, D) of unit norm
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from lora_clip.models.quiet import quiet_transformers
from lora_clip.types import PreprocessSpec

KINDS = ("CLIPModel", "CLIPVisionModel", "CLIPVisionModelWithProjection")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SPEC = PreprocessSpec(32, (32, 32), "bicubic", 1 / 255, MEAN, STD)
"""How the pixels of save_base's models are made."""
PREFIX = "base_model.model."

torch.set_num_threads(1)  # with tensors this small, threads cost ten times what they give


def save_base(
    folder: Path,
    seed: int = 0,
    image_size: int = 32,
    patch: int = 8,
    width: int = 32,
    layers: int = 2,
    projection: int = 16,
    dtype: torch.dtype = torch.float32,
    text_width: int | None = None,
) -> Path:
    """A random CLIPModel and its image processor, saved as transformers does; returns the folder.

    The text tower is as wide and as deep as the vision tower, so that only names keep the two apart, unless a
    `text_width` is given.
    """
    tower = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
    }
    vision = {**tower, "image_size": image_size, "patch_size": patch, "projection_dim": projection}
    tokens = {"vocab_size": 64, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = {**tower, **tokens, "projection_dim": projection, "hidden_size": text_width or width}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection))
    spread(model, seed)
    with quiet_transformers():
        model.to(dtype).save_pretrained(folder)  # type: ignore[arg-type]
    size = {"shortest_edge": image_size}
    CLIPImageProcessorPil(size=size, crop_size={"height": image_size, "width": image_size}).save_pretrained(folder)
    return folder


def spread(model: nn.Module, seed: int) -> None:
    """Random weights of the size that training leaves, in place: with CLIP's own start all images look alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            elif parameter.ndim == 1:
                parameter.add_(0.1 * noise)


def save_adapter(
    folder: Path, base: Path, kind: str = "CLIPModel", seed: int = 1, dtype: torch.dtype = torch.float32, **lora: Any
) -> Path:
    """An adapter of random weights for the transformers class `kind`, saved as PEFT does; returns the folder.

    `lora` are LoraConfig's arguments; `dtype` is that of the saved weights.
    """
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **lora})
    return save_trained(folder, load_class(kind, base), config, seed, dtype)


def save_trained(
    folder: Path, model: nn.Module, config: PeftConfig, seed: int = 1, dtype: torch.dtype = torch.float32
) -> Path:
    """An adapter of any kind for a module, its trained weights moved at random, saved as PEFT does."""
    with quiet_peft():
        adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    with quiet_peft():
        adapted.to(dtype).save_pretrained(str(folder), save_embedding_layers=False)
    return folder


@contextmanager
def quiet_peft() -> Iterator[None]:
    """PEFT warns of its own use of transformers, and pytest makes errors of warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def load_class(kind: str, base: Path) -> nn.Module:
    """The transformers class `kind` with the weights of `base`."""
    with quiet_transformers():
        return getattr(transformers, kind).from_pretrained(base).eval()


def name_as_transformers_4(adapter: Path) -> Path:
    """Rename, in place, the weights of a CLIPVisionModel adapter as transformers 4 named them."""
    edit_weights(
        adapter, lambda weights: {name.replace(PREFIX, f"{PREFIX}vision_model."): w for name, w in weights.items()}
    )
    return adapter


def edit_weights(adapter: Path, edit: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]) -> Path:
    """Save `edit` of an adapter's weights in their place."""
    path = adapter / "adapter_model.safetensors"
    save_file({name: weight.contiguous() for name, weight in edit(load_file(path)).items()}, path)
    return adapter


def edit_config(path: Path, **changes: Any) -> None:
    """Change some values of a JSON file; `...` takes the key away."""
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def random_pixels(count: int, image_size: int = 32, seed: int = 0) -> torch.Tensor:
    """Images (count, C, H, W) uint8 of blobs and noise: unlike one another, not uniform noise alone."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    smooth = functional.interpolate(coarse, (image_size, image_size), mode="bilinear")
    noise = torch.rand(count, 3, image_size, image_size, generator=generator)
    return ((0.8 * smooth + 0.2 * noise) * 255).round().to(torch.uint8)


def processed(base: Path, pixels_BCHW: torch.Tensor) -> torch.Tensor:
    """What the base's own image processor makes of images that have the model's size already."""
    processor = CLIPImageProcessorPil.from_pretrained(base)
    images = [image.permute(1, 2, 0).numpy() for image in pixels_BCHW]
    return processor(images=images, return_tensors="pt")["pixel_values"]


def reference(base: Path, adapter: Path | None, kind: str, pixels_BCHW: torch.Tensor) -> torch.Tensor:
    """Embeddings (B, D) of unit norm by transformers and PEFT alone: the class trained on, unmerged, float32."""
    model = load_class(kind, base).float()
    if adapter is not None:
        with quiet_peft():
            PeftModel.from_pretrained(model, str(adapter)).eval()  # puts its layers into `model`
    values = processed(base, pixels_BCHW)
    with torch.inference_mode(), quiet_peft():
        return functional.normalize(_embed(model, kind, base, values), dim=-1)


def _embed(model: nn.Module, kind: str, base: Path, values: torch.Tensor) -> torch.Tensor:
    if kind == "CLIPModel":
        return model.get_image_features(pixel_values=values).pooler_output  # type: ignore[operator]
    if kind == "CLIPVisionModel":
        projection = load_class("CLIPModel", base).float().visual_projection
        return projection(model(pixel_values=values).pooler_output)  # type: ignore[operator]
    return model(pixel_values=values).image_embeds


def centred_cosine(one_BD: torch.Tensor, other_BD: torch.Tensor) -> float:
    """The smallest cosine between rows of the same number once the mean of the first is taken from both.

    Embeddings of a collection share most of their direction; what tells images apart is the rest.
    """
    mean_D = one_BD.float().mean(dim=0)
    return lowest_cosine(one_BD.float() - mean_D, other_BD.float() - mean_D)


def lowest_cosine(one_BD: torch.Tensor, other_BD: torch.Tensor) -> float:
    """The smallest cosine between rows of the same number."""
    return float(functional.cosine_similarity(one_BD.float(), other_BD.float()).min())
