"""A LoRA adapter onto a base model's towers: every weight accounted for, or a loud failure.

Adapters exist that were trained on whole models (CLIPModel), on towers (CLIPVisionModel) and on towers with projection;
the family says by which names they are told apart. What an adapter holds for the text tower does not touch images:
`attach` leaves it aside, knowingly, and `attach_text` takes it for queries. Everything must fit exactly.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

    from lora_clip.models.generic import Family

PREFIX = "base_model.model."
"""What PEFT writes before the name of a weight, in a file."""
USE_BASE = "model.adapter=null embeds with the base model on purpose"


@dataclass(frozen=True)
class AdapterSummary:
    """What a person wants to know of an adapter: its rank(s), and how many layers of the vision tower it touches."""

    kind: str
    rank: str
    layers: int


def attach(family: Family, vision: nn.Module, folder: Path) -> tuple[PeftModel, AdapterSummary]:
    """Put the adapter onto a family's vision tower, in place; returns the PEFT model around it.

    Raises AdapterError for missing, unexpected or misshapen weights, for a kind that is not LoRA, and for an adapter
    without any weight that touches images.
    """
    config = _read_config(folder)
    weights = _image_weights(family, _read_weights(folder), folder)
    return _put_on(_root(vision, weights, family.vision_modules), config, weights, folder), _summary(weights, config)


def attach_text(family: Family, text: nn.Module, folder: Path) -> PeftModel | None:
    """Put what the adapter holds for text onto a family's text tower, in place; None where it holds nothing.

    Raises AdapterError as `attach` does.
    """
    weights = {name: weight for name, weight in _read_weights(folder).items() if _is_in(name, family.text_modules)}
    if not weights:
        return None
    return _put_on(_root(text, weights, family.text_modules), _read_config(folder), weights, folder)


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


def _is_in(name: str, modules: Sequence[str]) -> bool:
    """Whether a weight lies in one of these modules of a whole model."""
    return name.removeprefix(PREFIX).partition(".")[0] in modules


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
    if "Text" in trained.replace("ImageText", ""):  # its weights have the names of the vision tower's in transformers 5
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


def _image_weights(family: Family, weights: Mapping[str, torch.Tensor], folder: Path) -> dict[str, torch.Tensor]:
    kept = {name: weight for name, weight in weights.items() if not _is_in(name, family.text_modules)}
    if not kept:
        touched = "only the text tower" if weights else "nothing"
        raise AdapterError(
            f"adapter {folder} touches {touched}, so image embeddings would be the base model's. {USE_BASE}"
        )
    broken = sorted(name for name, weight in kept.items() if not weight.isfinite().all())
    if broken:
        raise AdapterError(f"adapter {folder}: {_count('are not finite', broken, len(kept))}: its training diverged")
    return kept


def _root(loaded: nn.Module, weights: Iterable[str], modules: Sequence[str]) -> nn.Module:
    """The module whose names the adapter's weights use: the family's whole model, or its tower alone.

    What was loaded may be either, too, by version of transformers: the tower is looked for in it, or put below the name
    that it has in a whole model. `modules` are that name and those of the projections; none: there are no whole models.
    """
    if not modules:
        return loaded
    inner = getattr(loaded, modules[0], None)
    if any(_is_in(name, modules) for name in weights):
        return nn.ModuleDict({modules[0]: loaded}) if inner is None else loaded
    return loaded if inner is None else inner


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


def summarise(family: Family, folder: Path) -> AdapterSummary:
    """What an adapter is, from its files alone. Raises AdapterError."""
    return _summary(_image_weights(family, _read_weights(folder), folder), _read_config(folder))


def _summary(weights: Mapping[str, torch.Tensor], config: LoraConfig) -> AdapterSummary:
    ranks = [weight.shape[0] for name, weight in weights.items() if ".lora_A" in name or ".lora_embedding_A" in name]
    kind = "DoRA" if config.use_dora else "rsLoRA" if config.use_rslora else "LoRA"
    return AdapterSummary(kind, "/".join(map(str, sorted(set(ranks)))), len(ranks))
