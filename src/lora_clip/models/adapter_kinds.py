"""Kinds of adapters: which of PEFT's can be merged into a tower, how a folder's config is read, what it is called."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lora_clip.errors import AdapterError
from lora_clip.models.adapter_layout import PREFIX
from lora_clip.models.checkpoint import read_adapter_config

if TYPE_CHECKING:
    from peft import PeftConfig

USE_BASE = "model.adapter=null embeds with the base model on purpose"
NAMES = {"LOHA": "LoHa", "LOKR": "LoKr", "ADALORA": "AdaLoRA", "HIRA": "HiRA", "MISS": "MiSS", "VERA": "VeRA"}
"""How people write the kinds that they do not write in capitals."""
UNMERGEABLE = {"LILY", "POLY", "XLORA", "SHADOW", "ADAPTION_PROMPT"}
"""Kinds that stay beside the weights, or choose by each input: there is nothing to merge."""
SHARED = {"VERA", "PVERA", "RANDLORA", "FROD", "UNILORA", "TINYLORA"}
"""Kinds whose layers draw on common matrices, made for all layers of a model at once: on one tower they are others."""
MERGE_YOURSELF = (
    "merge it into its base (PeftModel.from_pretrained, merge_and_unload, save_pretrained) and give that as model.base"
)


@dataclass(frozen=True)
class AdapterSummary:
    """What a person wants to know of an adapter: its rank(s), and how many layers of the vision tower it touches."""

    kind: str
    rank: str
    layers: int


@contextmanager
def peft_at_work(failure: str) -> Iterator[None]:
    """PEFT at work on untrusted files: its warnings are silenced, all its errors become one AdapterError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except Exception as error:
            lines = " ".join(line.strip() for line in str(error).splitlines()[:3])
            raise AdapterError(f"{failure}: {type(error).__name__}: {lines}") from error


def read_config(folder: Path) -> PeftConfig:
    """The config of an adapter that can be merged. Raises AdapterError for others."""
    found = read_adapter_config(folder)
    kind = found.get("peft_type")
    config_class = _config_class(kind, folder)
    if tower_of(found) == "text":  # its weights have the names of the vision tower's in transformers 5
        raise AdapterError(
            f"adapter {folder} was trained on {trained_on(found)}: it touches only the text tower. {USE_BASE}"
        )
    unknown = sorted(key for key, value in found.items() if value and key not in config_class.__dataclass_fields__)
    if unknown:
        raise AdapterError(
            f"adapter {folder} uses {', '.join(unknown)}, which this PEFT does not know: pip install -U peft"
        )
    with peft_at_work(f"adapter {folder}: its adapter_config.json is not one that PEFT accepts"):
        return config_class(**found) if folder.is_file() else config_class.from_pretrained(str(folder))


def trained_on(config: Mapping[str, Any]) -> str:
    """The class that an adapter was trained on, where its config says so."""
    return str((config.get("auto_mapping") or {}).get("base_model_class", ""))


def tower_of(config: Mapping[str, Any]) -> str | None:
    """The tower that an adapter was trained on, by its class: `vision`, `text`, or None: both, or not said."""
    named = re.sub("(Image|Vision)Text", "", trained_on(config))
    return "vision" if "Vision" in named else "text" if "Text" in named else None


def _config_class(kind: Any, folder: Path) -> Any:
    """PEFT's class for the config of a kind that can be merged. Raises AdapterError."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    known = {one.value: one for one in PEFT_TYPE_TO_CONFIG_MAPPING}
    if not isinstance(kind, str) or kind not in known:
        raise AdapterError(f"adapter {folder} is of type {kind}, which this PEFT does not know: pip install -U peft")
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[known[kind]]
    if kind in UNMERGEABLE or not hasattr(tuner, "merge_and_unload"):
        raise AdapterError(
            f"adapter {folder} is of type {kind}, which cannot be merged into the model's weights: "
            f"docs/adapters.md lists the kinds that can. {USE_BASE}"
        )
    return PEFT_TYPE_TO_CONFIG_MAPPING[known[kind]]


def is_shared(config: PeftConfig) -> bool:
    """Whether the layers of this kind draw on matrices that depend on which other layers there are."""
    return kind_of(config) in SHARED


def kind_of(config: PeftConfig) -> str:
    """The kind as PEFT writes it into a file."""
    return str(getattr(config.peft_type, "value", config.peft_type))


def for_one_tower(config: PeftConfig) -> PeftConfig:
    """The config without what concerns training, tasks and tokens; Megatron would be imported at its word."""
    config.inference_mode, config.task_type = True, None
    for name in ("trainable_token_indices", "megatron_config"):
        if hasattr(config, name):
            setattr(config, name, None)
    return config


def summary_of(weights: Mapping[str, torch.Tensor], config: PeftConfig) -> AdapterSummary:
    """What an adapter is, by the weights that touch images and its config."""
    return AdapterSummary(_name(config), _ranks(weights, config), len(adapted_modules(weights, config)))


def adapted_modules(weights: Iterable[str], config: PeftConfig) -> set[str]:
    """The modules that an adapter's weights belong to, by their names."""
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    mark = "." + PEFT_TYPE_TO_PREFIX_MAPPING[config.peft_type]  # type: ignore[index]
    return {name.partition(mark)[0].removeprefix(PREFIX) for name in weights if mark in name}


def _ranks(weights: Mapping[str, torch.Tensor], config: PeftConfig) -> str:
    """The rank, or the ranks where a pattern gives several; "" for a kind without."""
    if kind_of(config) != "LORA":
        return str(getattr(config, "r", None) or "")
    ranks = {weight.shape[0] for name, weight in weights.items() if ".lora_A" in name or ".lora_embedding_A" in name}
    return "/".join(map(str, sorted(ranks)))


def _name(config: PeftConfig) -> str:
    if kind_of(config) == "LORA":
        return "DoRA" if config.use_dora else "rsLoRA" if config.use_rslora else "LoRA"  # type: ignore[attr-defined]
    return NAMES.get(kind_of(config), kind_of(config))
