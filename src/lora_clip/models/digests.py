"""What tells one model from another: SHA-256 of its files, each hashed once a run, beside the imports."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_clip.io.process import cores
from lora_clip.models.adapter_clip_lora import is_of_clip_lora
from lora_clip.models.base import config_file
from lora_clip.models.hub import TOKENIZER_FILES

if TYPE_CHECKING:
    from lora_clip.models.checkpoint import Checkpoint

HASHED_AT_ONCE = 1 << 25
"""Bytes between two turns at Python's lock, which a thread that imports modules gives up every 5 ms only."""

_begun: dict[Path, Future[str]] = {}
"""The files of a run's models, which are hashed once, however many outputs there are."""


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
