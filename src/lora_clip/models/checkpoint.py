"""Where models lie: a folder, or a repository of the Hugging Face hub brought into its cache; safetensors only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_clip.errors import AdapterError, ModelError

BASE_FILES = ("config.json", "preprocessor_config.json", "processor_config.json", "*.safetensors", "*.index.json")
TOKENIZER_FILES = (
    *("tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json"),
    *("vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
)
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
CONVERSION_AUTHOR, CONVERSION_TITLE = "SFconvertbot", "Adding `safetensors` variant of this model"


@dataclass(frozen=True)
class Checkpoint:
    """A base model and, unless it is used alone, an adapter: their names as given and their local folders."""

    base: str
    base_folder: Path
    adapter: str | None
    adapter_folder: Path | None
    note: str | None = None


def find_checkpoint(base: str | None, adapter: str | None) -> Checkpoint:
    """The folders of a base and an adapter; the base is the adapter's own where none is given.

    Raises ModelError or AdapterError, saying what was looked for and where.
    """
    if adapter is not None:
        return _with_adapter(base, adapter)
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


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """An adapter's `adapter_config.json`. Raises AdapterError where it is not one."""
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{path} is not an adapter's config: a JSON object is expected")
    return config


def _trained_on(adapter_folder: Path) -> str | None:
    name = read_adapter_config(adapter_folder).get("base_model_name_or_path")
    if name is not None and not isinstance(name, str):
        raise AdapterError(f"{adapter_folder / 'adapter_config.json'}: base_model_name_or_path={name} is not a name")
    return name or None


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
    if base == trained_on or own.resolve() == base_folder.resolve():
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
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _download(name, (*BASE_FILES, *TOKENIZER_FILES), "model.base")
    if (folder / "adapter_config.json").is_file():  # transformers would put that adapter onto the base, unasked
        raise ModelError(
            f"base {name} holds an adapter: give its folder as model.adapter=…, "
            f"and a folder without adapter_config.json as model.base=…: {_files(folder)}"
        )
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"base {name} has no .safetensors file in {folder} (pickled weights are not loaded): {_files(folder)}"
        )
    if not (folder / "config.json").is_file():
        raise ModelError(f"base {name} has no config.json in {folder}: {_files(folder)}{_open_clip(folder)}")
    return folder


def _open_clip(folder: Path) -> str:
    """What to do about open_clip's files, where a folder holds them."""
    if not any(folder.glob("open_clip*")):
        return ""
    return (
        ". These are open_clip's own files, which are not read here: take the same model in transformers' form "
        "(such as laion/CLIP-ViT-B-32-laion2B-s34B-b79K)"
    )


def _adapter_folder(name: str) -> Path:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _download(name, ADAPTER_FILES, "model.adapter")
    for file in ADAPTER_FILES:
        if not (folder / file).is_file():
            raise AdapterError(
                f"adapter {name} has no {file} in {folder} (save it with PEFT's save_pretrained; "
                f"pickled weights are not loaded): {_files(folder)}"
            )
    return folder


def _files(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return f"found {', '.join(names[:8])}{', …' if len(names) > 8 else ''}" if names else "the folder is empty"


def _download(name: str, patterns: Sequence[str], key: str) -> Path:
    """A hub repository's files in the local cache; the hub's safetensors conversion where the repository has none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        folder = Path(snapshot_download(name, allow_patterns=list(patterns)))
        if not any(folder.glob("*.safetensors")) and (revision := _conversion(name)):
            folder = Path(snapshot_download(name, allow_patterns=list(patterns), revision=revision))
    except HFValidationError as error:
        raise ModelError(f"{key}={name}: no such folder, and no name of a hub repository either") from error
    except Exception as error:
        raise ModelError(
            f"{key}={name}: no such folder, and the Hugging Face hub did not give it "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        ) from error
    return folder


def _conversion(name: str) -> str | None:
    """The revision of the hub's automatic conversion to safetensors, which transformers would use as well."""
    from huggingface_hub import get_repo_discussions

    for discussion in get_repo_discussions(name, author=CONVERSION_AUTHOR):
        if discussion.is_pull_request and discussion.title == CONVERSION_TITLE:
            return f"refs/pr/{discussion.num}"
    return None


def digests(checkpoint: Checkpoint) -> dict[str, Any]:
    """What tells one model from another: SHA-256 of the weights and configs of base and adapter."""
    adapter, base = checkpoint.adapter_folder, checkpoint.base_folder
    return {
        "base": {"weights": weights_digest(base), "config": file_digest(base / "config.json")},
        "adapter": adapter
        and {
            "weights": file_digest(adapter / "adapter_model.safetensors"),
            "config": file_digest(adapter / "adapter_config.json"),
        },
    }


def weights_digest(folder: Path) -> str:
    """SHA-256 over a folder's safetensors files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
