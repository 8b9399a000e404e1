"""Where models lie: a folder, or a repository of the Hugging Face hub brought into its cache; safetensors only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_clip.errors import AdapterError, ModelError
from lora_clip.io.addresses import is_remote
from lora_clip.io.download import local_copy
from lora_clip.io.process import cores
from lora_clip.io.retry import words
from lora_clip.models.adapter_clip_lora import CONVERT, config_of, is_of_clip_lora
from lora_clip.models.base import OPEN_CLIP_CONFIG, config_file

BASE_FILES = (
    OPEN_CLIP_CONFIG,
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "*.safetensors",
    "*.index.json",
)
TOKENIZER_FILES = (
    *("tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json"),
    *("vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
)
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
HUB = "hf-hub:"
"""What open_clip writes before the name of a repository."""
CONVERSION_AUTHOR, CONVERSION_TITLE = "SFconvertbot", "Adding `safetensors` variant of this model"
HASHED_AT_ONCE = 1 << 25
"""Bytes between two turns at Python's lock, which a thread that imports modules gives up every 5 ms only."""

_begun: dict[Path, Future[str]] = {}
"""The files of a run's models, which are hashed once, however many outputs there are."""


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
    if is_of_clip_lora(folder):
        return folder
    if folder.is_file():
        raise AdapterError(
            f"adapter {name} is a file, and a folder of adapter_config.json and adapter_model.safetensors is expected, "
            "as PEFT's save_pretrained makes it. Where it is CLIP-LoRA's .pt, a pickle, which could run anything, "
            f"these lines, as a script, turn it into a .safetensors that is read (convert.py {name}):\n{CONVERT}"
        )
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
    """A hub repository's files in the local cache; `name@revision` takes a branch, tag or commit.

    Where a repository has no safetensors, the hub's conversion is taken, unless a revision is named.
    """
    if is_remote(name):
        return _copied(name, patterns, key)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    repository, _, revision = name.partition("@")
    try:
        folder = Path(snapshot_download(repository, allow_patterns=list(patterns), revision=revision or None))
        if not any(folder.glob("*.safetensors")) and not revision and (converted := _conversion(name)):
            folder = Path(snapshot_download(name, allow_patterns=list(patterns), revision=converted))
    except HFValidationError as error:
        raise ModelError(f"{key}={name}: no such folder, and no name of a hub repository either") from error
    except Exception as error:
        raise ModelError(
            f"{key}={name}: no such folder, and the Hugging Face hub did not give it "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        ) from error
    return folder


def _copied(name: str, patterns: Sequence[str], key: str) -> Path:
    """The files of a folder in a bucket, in the local cache."""
    try:
        return local_copy(name, patterns)
    except FileNotFoundError as error:
        raise ModelError(f"{key}={name}: no such folder, or none of the files in it that a model has") from error
    except OSError as error:
        raise ModelError(f"{key}={name}: {words(error)}") from error


def _conversion(name: str) -> str | None:
    """The revision of the hub's automatic conversion to safetensors, which transformers would use as well."""
    from huggingface_hub import get_repo_discussions

    for discussion in get_repo_discussions(name, author=CONVERSION_AUTHOR):
        if discussion.is_pull_request and discussion.title == CONVERSION_TITLE:
            return f"refs/pr/{discussion.num}"
    return None


def digests(checkpoint: Checkpoint) -> dict[str, Any]:
    """What tells one model from another: SHA-256 of the weights and configs of base and adapter."""
    base, each = checkpoint.base_folder, [_adapter_digests(part.folder) for part in checkpoint.adapters]
    adapter: dict[str, Any] | None = each[0] if each else None
    if checkpoint.is_sum:
        weighted = [{"weight": part.weight, **one} for part, one in zip(checkpoint.parts, each, strict=True)]
        adapter = {"sum": sorted(weighted, key=lambda one: (one["weights"], one["config"] or "", one["weight"]))}
    return {"base": {"weights": weights_digest(base), "config": file_digest(config_file(base))}, "adapter": adapter}


def _adapter_digests(folder: Path) -> dict[str, Any]:
    if is_of_clip_lora(folder):
        return {"weights": file_digest(folder), "config": None}
    return {
        "weights": file_digest(folder / "adapter_model.safetensors"),
        "config": file_digest(folder / "adapter_config.json"),
    }


def tokenizer_digest(folder: Path) -> str:
    """SHA-256 over the files of a base model's tokenizer, in the order of their names."""
    names = sorted({path.name for pattern in TOKENIZER_FILES for path in folder.glob(pattern)})
    return hashlib.sha256("".join(f"{name} {file_digest(folder / name)}\n" for name in names).encode()).hexdigest()


def weights_digest(folder: Path) -> str:
    """SHA-256 over a folder's safetensors files, in the order of their names."""
    digest = hashlib.sha256()
    for path in _weights(folder):
        digest.update(bytes.fromhex(file_digest(path)))
    return digest.hexdigest()


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def begin_digests(checkpoints: Iterable[Checkpoint]) -> None:
    """Hash the weights of models in threads of their own: modules can be imported meanwhile, which takes one core."""
    files = {path for one in checkpoints for folder in _folders(one) for path in _weights(folder)}
    if files:
        threads = ThreadPoolExecutor(cores(), "digest")
        _begun.update({path: threads.submit(_digest, path) for path in sorted(files)})
        threads.shutdown(wait=False)


def _folders(checkpoint: Checkpoint) -> list[Path]:
    return [checkpoint.base_folder, *(part.folder for part in checkpoint.adapters)]


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    return _begun[path].result() if path in _begun else _digest(path)


def _digest(path: Path) -> str:
    digest, buffer = hashlib.sha256(), bytearray(min(HASHED_AT_ONCE, path.stat().st_size + 1))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return digest.hexdigest()
