"""A LoRA adapter onto CLIP's vision tower: every weight accounted for, or a loud failure.

Adapters exist that were trained on CLIPModel, CLIPVisionModel and CLIPVisionModelWithProjection. What such an adapter
holds for the text tower does not touch images: `attach` leaves it aside, knowingly, and `attach_text` takes it for
queries. Everything must fit exactly.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import nn

from lora_clip.errors import AdapterError
from lora_clip.models.checkpoint import read_adapter_config

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

PREFIX = "base_model.model."
TEXT_PARTS = ("text_model.", "text_projection.")
VISION_PARTS = ("vision_model.", "visual_projection.")
USE_BASE = "model.adapter=null embeds with the base model on purpose"


@dataclass(frozen=True)
class AdapterSummary:
    """What a person wants to know of an adapter: its rank(s), and how many layers of the vision tower it touches."""

    kind: str
    rank: str
    layers: int


def attach(vision: nn.Module, folder: Path) -> tuple[PeftModel, AdapterSummary]:
    """Put the adapter onto a CLIPVisionModelWithProjection, in place; returns the PEFT model around it.

    Raises AdapterError for missing, unexpected or misshapen weights, for a kind that is not LoRA, and for an adapter
    without any weight that touches images.
    """
    config = _read_config(folder)
    weights = _image_weights(_read_weights(folder), folder)
    return _put_on(_root(vision, weights), config, weights, folder), _summary(weights, config)


def attach_text(text: nn.Module, folder: Path) -> PeftModel | None:
    """Put what the adapter holds for text onto a CLIPTextModelWithProjection, in place; None where it holds nothing.

    Raises AdapterError as `attach` does.
    """
    weights = {name: weight for name, weight in _read_weights(folder).items() if _is_text(name)}
    return _put_on(text, _read_config(folder), weights, folder) if weights else None


def _put_on(root: nn.Module, config: LoraConfig, weights: Mapping[str, torch.Tensor], folder: Path) -> PeftModel:
    """An adapter's weights on a module, in place, each of them accounted for."""
    from peft import get_peft_model, set_peft_model_state_dict

    with _peft(f"adapter {folder} does not fit the base model"):
        model = get_peft_model(root, _for_one_tower(config))
    _check_fit(_weights_of(model), weights, folder)
    with _peft(f"adapter {folder} cannot be loaded"):
        set_peft_model_state_dict(model, dict(weights))
    _check_loaded(_weights_of(model), weights, folder)
    return model.eval()


def _is_text(name: str) -> bool:
    return name.removeprefix(PREFIX).startswith(TEXT_PARTS)


def merge(model: PeftModel, folder: Path) -> None:
    """Write the adapter's changes into the base weights, in place, and leave no trace of PEFT.

    Raises AdapterError where a merged weight is not finite.
    """
    with _peft(f"adapter {folder} cannot be merged"):
        model.merge_and_unload(safe_merge=True)


@contextmanager
def _peft(failure: str) -> Iterator[None]:
    """PEFT at work on untrusted files: its warnings are silenced, all its errors become one AdapterError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except Exception as error:
            lines = " ".join(line.strip() for line in str(error).splitlines()[:3])
            raise AdapterError(f"{failure}: {type(error).__name__}: {lines}") from error


def _read_config(folder: Path) -> LoraConfig:
    from peft import LoraConfig

    found = read_adapter_config(folder)
    kind, trained = found.get("peft_type"), (found.get("auto_mapping") or {}).get("base_model_class", "")
    if kind != "LORA":
        raise AdapterError(f"adapter {folder} is of type {kind}: only LoRA (rsLoRA, DoRA too) can be merged here")
    if "Text" in trained:  # its weights have the names of the vision tower's in transformers 5
        raise AdapterError(f"adapter {folder} was trained on {trained}: it touches only the text tower. {USE_BASE}")
    unknown = sorted(key for key, value in found.items() if value and key not in LoraConfig.__dataclass_fields__)
    if unknown:
        raise AdapterError(
            f"adapter {folder} uses {', '.join(unknown)}, which this PEFT does not know: pip install -U peft"
        )
    with _peft(f"adapter {folder}: its adapter_config.json is not one that PEFT accepts"):
        return LoraConfig.from_pretrained(str(folder))


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    with _peft(f"adapter {folder}: adapter_model.safetensors cannot be read"):
        return load_file(folder / "adapter_model.safetensors")


def _image_weights(weights: Mapping[str, torch.Tensor], folder: Path) -> dict[str, torch.Tensor]:
    kept = {name: weight for name, weight in weights.items() if not _is_text(name)}
    if not kept:
        touched = "only the text tower" if weights else "nothing"
        raise AdapterError(
            f"adapter {folder} touches {touched}, so image embeddings would be the base model's. {USE_BASE}"
        )
    broken = sorted(name for name, weight in kept.items() if not weight.isfinite().all())
    if broken:
        raise AdapterError(f"adapter {folder}: {_count('are not finite', broken, len(kept))}: its training diverged")
    return kept


def _root(vision: nn.Module, weights: Iterable[str]) -> nn.Module:
    """The module whose names the adapter's weights use: the whole model, or its tower (CLIPVisionModel)."""
    whole = any(name.removeprefix(PREFIX).startswith(VISION_PARTS) for name in weights)
    root = vision if whole else vision.vision_model
    assert isinstance(root, nn.Module)
    return root


def _for_one_tower(config: LoraConfig) -> LoraConfig:
    """The adapter's config without what concerns training, tasks and tokens; Megatron would be imported at its word."""
    config.inference_mode, config.task_type = True, None
    config.trainable_token_indices = config.megatron_config = None
    return config


def _weights_of(model: PeftModel) -> dict[str, torch.Tensor]:
    """What PEFT would save of the model: the adapter's weights under the names that they have in a file."""
    from peft import get_peft_model_state_dict

    with _peft("the adapter's weights cannot be listed"):
        return get_peft_model_state_dict(model, save_embedding_layers=False)


def _check_fit(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], folder: Path) -> None:
    common = expected.keys() & found.keys()
    problems = (
        _count("missing", expected.keys() - found.keys(), len(expected)),
        _count("unexpected", found.keys() - expected.keys(), len(found)),
        _count("misshapen", [name for name in common if expected[name].shape != found[name].shape], len(found)),
    )
    if any(problems):
        raise AdapterError(
            f"adapter {folder} does not fit the base model: {'; '.join(filter(None, problems))}. "
            "Is this the base it was trained on (its adapter_config.json says which)?"
        )


def _check_loaded(held: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], folder: Path) -> None:
    """PEFT passes over weights that it finds no place for, so what the model holds is compared with the file."""
    lost = [name for name, weight in held.items() if not torch.equal(weight.cpu(), given[name].to(weight.dtype))]
    if lost:
        raise AdapterError(f"adapter {folder}: {_count('were not loaded', lost, len(given))} by this version of PEFT")


def _count(what: str, names: Iterable[str], total: int) -> str:
    listed = sorted(names)
    return f"{len(listed)} of {total} weights {what} (such as {listed[0]})" if listed else ""


def summarise(folder: Path) -> AdapterSummary:
    """What an adapter is, from its files alone. Raises AdapterError."""
    return _summary(_image_weights(_read_weights(folder), folder), _read_config(folder))


def _summary(weights: Mapping[str, torch.Tensor], config: LoraConfig) -> AdapterSummary:
    ranks = [weight.shape[0] for name, weight in weights.items() if ".lora_A" in name or ".lora_embedding_A" in name]
    kind = "DoRA" if config.use_dora else "rsLoRA" if config.use_rslora else "LoRA"
    return AdapterSummary(kind, "/".join(map(str, sorted(set(ranks)))), len(ranks))
