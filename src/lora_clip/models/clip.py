"""Base CLIP + LoRA as one plain network: loaded in float32, checked against the unmerged model, merged, then cast."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn
from torch.nn import functional

from lora_clip.errors import AdapterError, ConfigError, ModelError
from lora_clip.models.adapters import USE_BASE, AdapterSummary, attach, merge
from lora_clip.models.checkpoint import Checkpoint
from lora_clip.models.clip_tower import Normalisation, VisionTower
from lora_clip.models.quiet import quiet_transformers

if TYPE_CHECKING:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SAME_COSINE = 0.9999
PROBE_IMAGES = 2
CACHED_IMAGES = 16
"""How many images a CPU takes at once: what passes between layers then stays in its caches."""


class ImageEncoder(nn.Module):
    """CLIP's vision tower with its projection, on uint8 pixels; `width` is D, `image_size` is H = W in pixels."""

    def __init__(self, vision: CLIPVisionModelWithProjection, normalisation: Normalisation) -> None:
        super().__init__()
        self.tower = VisionTower(vision, normalisation)
        self.width = int(vision.visual_projection.out_features)
        self.image_size = _image_size(vision)

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D) of uint8 pixels (B, C, H, W), float32, of unit L2 norm."""
        chunks = pixels_BCHW.split(CACHED_IMAGES) if pixels_BCHW.device.type == "cpu" else (pixels_BCHW,)
        return functional.normalize(torch.cat([self.tower(chunk) for chunk in chunks]).float(), dim=-1)

    def cast(self, dtype: torch.dtype) -> Self:
        """Let the products be computed in `dtype`.

        On a CPU the stream of tokens stays float32: that costs nothing there and brings the embeddings four times
        closer to float32's. All weights are copied out of the file's mapping: how that happens to be aligned would show
        in the last bits of a product.
        """
        for parameter in self.parameters():
            parameter.data = parameter.data.clone()
        if self.tower.start_TD.device.type != "cpu":
            return self.to(dtype)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.to(dtype)
        return self


def load_encoder(
    checkpoint: Checkpoint, normalisation: Normalisation, dtype: torch.dtype, device: torch.device
) -> tuple[ImageEncoder, AdapterSummary | None]:
    """The merged encoder on its device, in `dtype`, ready for inference.

    Raises ModelError or AdapterError; never returns the base model in place of the adapted one.
    """
    vision, summary = load_vision(checkpoint.base_folder, device), None
    if checkpoint.adapter_folder is None:
        encoder = _plain(vision, checkpoint.base_folder, normalisation)
    else:
        encoder, summary = _adapt(vision, checkpoint.adapter_folder, normalisation)
    return encoder.cast(dtype).eval().requires_grad_(False), summary


def _plain(vision: CLIPVisionModelWithProjection, folder: Path, normalisation: Normalisation) -> ImageEncoder:
    """The base model alone."""
    pixels_BCHW = _probe(vision)
    expected_BD = _embed(vision, _normalise(pixels_BCHW, normalisation))
    encoder = ImageEncoder(vision, normalisation)
    _check_same(expected_BD, encoder, pixels_BCHW, f"base {folder}: embeddings differ from those of transformers")
    return encoder


def load_vision(folder: Path, device: torch.device) -> CLIPVisionModelWithProjection:
    """The vision tower with projection of a CLIP checkpoint, in float32. Raises ModelError for another or a part."""
    from transformers import CLIPVisionModelWithProjection

    try:
        with quiet_transformers():
            loaded: Any = CLIPVisionModelWithProjection.from_pretrained(
                folder,
                config=_vision_config(folder),
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except ModelError:
        raise
    except Exception as error:  # transformers meets untrusted files here
        raise ModelError(f"base {folder} cannot be loaded as a CLIP model: {type(error).__name__}: {error}") from error
    vision, info = loaded
    if lacking := sorted(info["missing_keys"]):
        raise ModelError(f"base {folder} lacks {len(lacking)} weights of a CLIP vision model, such as {lacking[0]}")
    vision = vision.to(device).eval().requires_grad_(False)
    # a sum is finite where all its terms are, and takes a tenth of the time of isfinite over all of them
    if broken := sorted(name for name, weight in vision.named_parameters() if not weight.sum().isfinite()):
        raise ModelError(f"base {folder}: {len(broken)} weights are not finite, such as {broken[0]}")
    return vision


def _vision_config(folder: Path) -> CLIPVisionConfig:
    """The vision tower's config; the width of the projection is the whole model's, as CLIPModel takes it."""
    from transformers import CLIPConfig, CLIPVisionConfig

    kind = json.loads((folder / "config.json").read_text()).get("model_type")
    if kind == "clip_vision_model":
        return CLIPVisionConfig.from_pretrained(folder)
    if kind != "clip":
        raise ModelError(
            f"base {folder} is a model of type {kind}: a CLIP model is expected (type clip or clip_vision_model)"
        )
    whole: Any = CLIPConfig.from_pretrained(folder)
    whole.vision_config.projection_dim = whole.projection_dim
    return whole.vision_config


def _adapt(
    vision: CLIPVisionModelWithProjection, folder: Path, normalisation: Normalisation
) -> tuple[ImageEncoder, AdapterSummary]:
    """The encoder with the adapter merged into it; a probe shows that it is not the base and the merge is exact."""
    pixels_BCHW = _probe(vision)
    inputs_BCHW = _normalise(pixels_BCHW, normalisation)
    base_BD = _embed(vision, inputs_BCHW)
    model, summary = attach(vision, folder)
    unmerged_BD = _embed(vision, inputs_BCHW)
    _check_changed(base_BD, unmerged_BD, folder, summary)
    merge(model, folder)
    encoder = ImageEncoder(vision, normalisation)
    _check_same(
        unmerged_BD, encoder, pixels_BCHW, f"adapter {folder}: the merged model disagrees with the unmerged one"
    )
    return encoder, summary


@torch.inference_mode()
def _embed(vision: CLIPVisionModelWithProjection, inputs_BCHW: torch.Tensor) -> torch.Tensor:
    return vision(pixel_values=inputs_BCHW).image_embeds


def _check_changed(base_BD: torch.Tensor, adapted_BD: torch.Tensor, folder: Path, summary: AdapterSummary) -> None:
    if torch.equal(base_BD, adapted_BD):
        raise AdapterError(
            f"adapter {folder} changes nothing: with its {summary.layers} layers the embeddings are the base model's, "
            f"bit for bit (was it saved before training?). {USE_BASE}"
        )


@torch.inference_mode()
def _check_same(expected_BD: torch.Tensor, encoder: ImageEncoder, pixels_BCHW: torch.Tensor, otherwise: str) -> None:
    cosine = float(functional.cosine_similarity(expected_BD, encoder(pixels_BCHW)).min())
    if not cosine >= SAME_COSINE:
        kind = AdapterError if otherwise.startswith("adapter") else ModelError
        raise kind(f"{otherwise} (cosine {cosine:.6f}, at least {SAME_COSINE} is expected)")


def _image_size(vision: CLIPVisionModelWithProjection) -> int:
    size = vision.config.image_size
    assert isinstance(size, int)
    return size


def _probe(vision: CLIPVisionModelWithProjection) -> torch.Tensor:
    """Fixed random pixels (B, C, H, W) uint8, on the model's device, on which the merged model is compared."""
    generator, size = torch.Generator().manual_seed(0), _image_size(vision)
    pixels_BCHW = torch.randint(0, 256, (PROBE_IMAGES, 3, size, size), dtype=torch.uint8, generator=generator)
    return pixels_BCHW.to(vision.visual_projection.weight.device)


def _normalise(pixels_BCHW: torch.Tensor, normalisation: Normalisation) -> torch.Tensor:
    values_BCHW = pixels_BCHW.float() * normalisation.scale
    mean_C11, std_C11 = (
        values_BCHW.new_tensor(per_channel)[:, None, None] for per_channel in (normalisation.mean, normalisation.std)
    )
    return (values_BCHW - mean_C11) / std_C11


def resolve_dtype(name: str, device_type: str) -> torch.dtype:
    """The dtype that `model.dtype` names; `auto` is bfloat16 on a device that computes in it, else float32.

    Raises ConfigError for another name.
    """
    if name == "auto":
        able = torch.cuda.is_bf16_supported() if device_type == "cuda" else device_type == "cpu" and _cpu_has_bfloat16()
        return torch.bfloat16 if able else torch.float32
    if name not in DTYPES:
        raise ConfigError(f"model.dtype={name}: auto, {', '.join(DTYPES)} are known")
    return DTYPES[name]


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU has instructions for products in bfloat16; without them it is slower than float32."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name)() for name in names if hasattr(torch.cpu, name))
