"""Which base and which adapter a run has, and in which folders they lie; safetensors only."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_clip.errors import AdapterError, ModelError
from lora_clip.models.adapter_clip_lora import CONVERT, config_of, is_of_clip_lora
from lora_clip.models.base import OPEN_CLIP_CONFIG, config_file
from lora_clip.models.digests import weights_digest
from lora_clip.models.hub import ADAPTER_FILES, BASE_FILES, TOKENIZER_FILES, download

HUB = "hf-hub:"
"""What open_clip writes before the name of a repository."""


@dataclass(frozen=True)
class Part:
    """An adapter with its weight in a sum: 1 where it is used alone."""

    name: str
    folder: Path
    weight: float = 1.0


@dataclass(frozen=True)
class Checkpoint:
    """A base model and, unless it is used alone, an adapter: their names as given and their local folders.

    A weighted sum of adapters is a mapping of their names to weights; its folders are in `parts`.
    """

    base: str
    base_folder: Path
    adapter: str | dict[str, float] | None
    adapter_folder: Path | None
    note: str | None = None
    parts: tuple[Part, ...] = ()

    @property
    def adapters(self) -> tuple[Part, ...]:
        """The adapters that go onto the base: none, one, or those of a sum."""
        if isinstance(self.adapter, str) and self.adapter_folder is not None:
            return (Part(self.adapter, self.adapter_folder),)
        return self.parts

    @property
    def is_sum(self) -> bool:
        """Whether adapters are added up by weights, be it a single one with a weight."""
        return bool(self.parts)


def find_checkpoint(base: str | None, adapter: str | Mapping[str, float] | None) -> Checkpoint:
    """The folders of a base and an adapter, or a weighted sum of some; the base is their own where none is given.

    Raises ModelError or AdapterError, saying what was looked for and where.
    """
    if isinstance(adapter, str):
        return _with_adapter(base, adapter)
    if adapter is not None:
        return _with_sum(base, {str(name): float(weight) for name, weight in adapter.items()})
    if base is None:
        raise ModelError("neither model.base nor model.adapter is given: name a CLIP model, a LoRA adapter, or both")
    return Checkpoint(base, _base_folder(base), None, None)


def _with_adapter(base: str | None, adapter: str) -> Checkpoint:
    adapter_folder = _adapter_folder(adapter)
    trained_on = _trained_on(adapter_folder)
    if base is None:
        return Checkpoint(*_own_base(adapter_folder, trained_on), adapter, adapter_folder)
    base_folder = _base_folder(base)
    note = _compare_bases(base, base_folder, trained_on, adapter_folder) if trained_on else None
    return Checkpoint(base, base_folder, adapter, adapter_folder, note)


def _with_sum(base: str | None, weights: dict[str, float]) -> Checkpoint:
    """The same for a sum: all its adapters must be of the one base."""
    found = {}
    for name in weights:
        found[name] = _with_adapter(base, name)
        base = found[name].base
    assert base is not None, "the schema takes no empty sum"
    notes = dict.fromkeys(one.note for one in found.values() if one.note)
    parts = tuple(Part(name, _folder_of(one), weights[name]) for name, one in found.items())
    base_folder = next(iter(found.values())).base_folder
    return Checkpoint(base, base_folder, weights, None, "; ".join(notes) or None, parts)


def _folder_of(checkpoint: Checkpoint) -> Path:
    assert checkpoint.adapter_folder is not None
    return checkpoint.adapter_folder


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """An adapter's `adapter_config.json`, or what stands for it. Raises AdapterError where it is not one."""
    if is_of_clip_lora(folder):
        return config_of(folder)
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{path} is not an adapter's config: a JSON object is expected")
    return config


def _trained_on(adapter_folder: Path) -> str | None:
    """The name of an adapter's base, with the revision; None where it has none, as for one that was in memory only."""
    config = read_adapter_config(adapter_folder)
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(name, str) or not name:
        return None
    named = isinstance(revision, str) and revision and not Path(_beside(adapter_folder, name)).is_dir()
    return f"{name}@{revision}" if named else name


def _own_base(adapter_folder: Path, trained_on: str | None) -> tuple[str, Path]:
    """The name and the folder of the base that an adapter names itself."""
    if not trained_on:
        raise AdapterError(f"adapter {adapter_folder} does not say which base it was trained on: give model.base=…")
    name = _beside(adapter_folder, trained_on)
    try:
        return name, _base_folder(name)
    except ModelError as error:
        raise ModelError(
            f"{error}\nThe adapter in {adapter_folder} names {trained_on!r} as the base it was trained on: "
            "give model.base=… where that is to be found elsewhere"
        ) from error


def _beside(adapter_folder: Path, name: str) -> str:
    """A relative base path in an adapter is relative to the adapter, so that both can be moved together."""
    beside = (adapter_folder / name).resolve()
    return str(beside) if name.startswith(".") and beside.is_dir() else name


def _compare_bases(base: str, base_folder: Path, trained_on: str, adapter_folder: Path) -> str | None:
    """A note where the given base has another name than the adapter's own; an error where its weights differ."""
    own = Path(_beside(adapter_folder, trained_on))
    if base.removeprefix(HUB) == trained_on.removeprefix(HUB) or own.resolve() == base_folder.resolve():
        return None
    if not any(own.glob("*.safetensors")):
        return f"the adapter names its base {trained_on!r}; using {base!r} as you say"
    if weights_digest(own) != weights_digest(base_folder):
        raise AdapterError(
            f"the adapter was trained on {own}, and {base} has other weights: give the base it was trained on, "
            "or leave model.base out to take it from the adapter"
        )
    return None


def _base_folder(name: str) -> Path:
    name = name.removeprefix(HUB)
    folder = Path(name).expanduser()
    if folder.is_file():
        raise ModelError(f"model.base={name} is a file: give the folder that it lies in, {folder.parent}")
    if not folder.is_dir():
        folder = download(name, (*BASE_FILES, *TOKENIZER_FILES), "model.base")
    if (folder / "adapter_config.json").is_file():  # transformers would put that adapter onto the base, unasked
        raise ModelError(
            f"base {name} holds an adapter: give its folder as model.adapter=…, "
            f"and a folder without adapter_config.json as model.base=…: {_files(folder)}"
        )
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"base {name} has no .safetensors file in {folder} (pickled weights are not loaded): {_files(folder)}"
            f"{_open_clip(folder)}"
        )
    if not config_file(folder).is_file():
        raise ModelError(f"base {name} has no config.json in {folder}: {_files(folder)}{_open_clip(folder)}")
    return folder


def _open_clip(folder: Path) -> str:
    """What to do about open_clip's files, where a folder holds a part of them."""
    if not any(folder.glob("open_clip*")):
        return ""
    return (
        f". Of open_clip's files {OPEN_CLIP_CONFIG} and open_clip_model.safetensors are read. Where there is only a "
        ".bin, convert it once: docs/models.md has the lines"
    )


def _adapter_folder(name: str) -> Path:
    folder = Path(name).expanduser()
    if folder.is_file() and (folder.parent / "adapter_config.json").is_file():
        raise AdapterError(f"model.adapter={name} is a file: give the folder that it lies in, {folder.parent}")
    if is_of_clip_lora(folder):
        return folder
    if folder.is_file():
        raise AdapterError(
            f"adapter {name} is a file, and a folder of adapter_config.json and adapter_model.safetensors is expected, "
            "as PEFT's save_pretrained makes it. Where it is CLIP-LoRA's .pt, a pickle, which could run anything, "
            f"these lines, as a script, turn it into a .safetensors that is read (convert.py {name}):\n{CONVERT}"
        )
    if not folder.is_dir():
        folder = download(name, ADAPTER_FILES, "model.adapter")
    if below := _adapters_below(folder):
        raise AdapterError(
            f"adapter {name} is no adapter itself: below it: {', '.join(below)}. "
            f"Give one of them, as in model.adapter={folder / below[-1]}"
        )
    for file in ADAPTER_FILES:
        if not (folder / file).is_file():
            raise AdapterError(
                f"adapter {name} has no {file} in {folder} (save it with PEFT's save_pretrained; "
                f"pickled weights are not loaded): {_files(folder)}"
            )
    return folder


def _adapters_below(folder: Path) -> list[str]:
    """The adapters in a folder that is none itself, such as a trainer's checkpoints, the latest of them last."""
    if (folder / "adapter_config.json").is_file():
        return []
    names = [path.parent.name for path in folder.glob("*/adapter_config.json")]
    return sorted(names, key=lambda name: [int(part) if part.isdigit() else 0 for part in re.split(r"(\d+)", name)])


def _files(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return f"found {', '.join(names[:8])}{', …' if len(names) > 8 else ''}" if names else "the folder is empty"
