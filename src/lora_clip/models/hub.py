"""Models that are in no folder yet: a repository of the Hugging Face hub, or a bucket's, brought into a cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lora_clip.errors import ModelError
from lora_clip.io.addresses import is_remote
from lora_clip.io.download import local_copy
from lora_clip.io.retry import words
from lora_clip.models.base import OPEN_CLIP_CONFIG

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
CONVERSION_AUTHOR, CONVERSION_TITLE = "SFconvertbot", "Adding `safetensors` variant of this model"


def download(name: str, patterns: Sequence[str], key: str) -> Path:
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
