"""A LoRA adapter onto CLIP's vision tower: every weight accounted for, or a loud failure.

Adapters exist that were trained on CLIPModel, CLIPVisionModel and CLIPVisionModelWithProjection. What such an adapter
holds for the text tower does not touch images and is left aside here, knowingly; everything else must fit exactly.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from lora_clip.errors import AdapterError

PREFIX = "base_model.model."
TEXT_PARTS = ("text_model.", "text_projection.", "text_projection", "logit_scale")
VISION_PARTS = ("vision_model.", "visual_projection.", "visual_projection")


@dataclass(frozen=True)
class AdapterSummary:
    """What a person wants to know of an adapter: its rank(s), and how many layers of the vision tower it touches."""

    kind: str
    rank: str
    layers: int


def attach(vision: nn.Module, folder: Path) -> tuple[nn.Module, AdapterSummary]:
    """Put the adapter onto a CLIPVisionModelWithProjection, in place; returns the PEFT model around it.

    Raises AdapterError for missing, unexpected or misshapen weights, for a kind that is not LoRA, and for an adapter
    without any weight that touches images.
    """
    from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict

    config = PeftConfig.from_pretrained(str(folder))
    if str(config.peft_type.value if config.peft_type else "") != "LORA":
        raise AdapterError(f"adapter {folder} is of type {config.peft_type}, only LoRA (rsLoRA, DoRA too) can be merged here")
    weights = _image_weights(_read(folder), folder)
    root = _root(vision, weights)
    config.inference_mode, config.task_type = True, None
    config.modules_to_save = _present(root, config.modules_to_save)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: PeftModel = get_peft_model(root, config)
            _check_names(_expected(model), weights.keys(), folder)
            set_peft_model_state_dict(model, weights)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        if isinstance(error, AdapterError):
            raise
        raise AdapterError(f"adapter {folder} does not fit the base model: {_first_lines(error)}") from error
    return model.eval(), _summary(model, config)


def merge(model: nn.Module, adapter: str) -> None:
    """Write the adapter's changes into the base weights, in place, and leave no trace of PEFT.

    Raises AdapterError where a merged weight is not finite.
    """
    try:
        model.merge_and_unload(safe_merge=True)  # type: ignore[operator]
    except ValueError as error:
        raise AdapterError(f"adapter {adapter} cannot be merged: {_first_lines(error)}") from error


def _read(folder: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(folder / "adapter_model.safetensors")
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"adapter {folder}: adapter_model.safetensors cannot be read: {error}") from error


def _image_weights(weights: Mapping[str, torch.Tensor], folder: Path) -> dict[str, torch.Tensor]:
    kept = {name: weight for name, weight in weights.items() if not name.removeprefix(PREFIX).startswith(TEXT_PARTS)}
    if not kept:
        touched = "only the text tower" if weights else "nothing"
        raise AdapterError(
            f"adapter {folder} touches {touched}, so image embeddings would be the base model's: "
            "model.adapter=null embeds with the base model on purpose"
        )
    return kept


def _root(vision: nn.Module, weights: Mapping[str, torch.Tensor]) -> nn.Module:
    """The module whose names the adapter's weights use: the whole model, or its tower (CLIPVisionModel of transformers 5)."""
    names = [name.removeprefix(PREFIX) for name in weights]
    root = vision if any(name.startswith(VISION_PARTS) for name in names) else vision.vision_model
    assert isinstance(root, nn.Module)
    return root


def _present(root: nn.Module, names: Iterable[str] | None) -> list[str] | None:
    """Of `modules_to_save`, those in the vision tower: an adapter of CLIPModel may name text modules as well."""
    kept = [name for name in names or () if any(re.fullmatch(rf"(.*\.)?{re.escape(name)}", one) for one, _ in root.named_modules())]
    return kept or None


def _expected(model: nn.Module) -> set[str]:
    from peft import get_peft_model_state_dict

    return set(get_peft_model_state_dict(model, save_embedding_layers=False))


def _check_names(expected: set[str], found: Iterable[str], folder: Path) -> None:
    missing, unexpected = sorted(expected - set(found)), sorted(set(found) - expected)
    if missing or unexpected:
        parts = [_count("missing", missing, len(expected)), _count("unexpected", unexpected, len(set(found)))]
        raise AdapterError(
            f"adapter {folder} does not fit the base model: {'; '.join(part for part in parts if part)}. "
            "Is this the base it was trained on (its adapter_config.json says which)?"
        )


def _count(what: str, names: list[str], total: int) -> str:
    return f"{len(names)} of {total} weights {what} (such as {names[0]})" if names else ""


def _first_lines(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()[:3])


def _summary(model: nn.Module, config: object) -> AdapterSummary:
    from peft.tuners.lora import LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    ranks = sorted({rank for layer in layers for rank in layer.r.values()})
    kind = "DoRA" if getattr(config, "use_dora", False) else "rsLoRA" if getattr(config, "use_rslora", False) else "LoRA"
    return AdapterSummary(kind, "/".join(map(str, ranks)) or "0", len(layers))
