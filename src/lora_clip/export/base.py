"""What an export is written to: the seam, and the registry of those that there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from lora_clip.export.content import Content


class Target(Protocol):
    """An export on disk that is brought up to date: readers see it whole after each step."""

    folder: Path
    """What is locked meanwhile, and made if it is missing."""

    def held(self) -> Mapping[int, str]:
        """The token of each shard that it holds; "" of one that it may hold a part of.

        Raises OutputError where it is no export, or one of other embeddings.
        """
        ...

    def bring(self, new: Iterable[int], gone: Iterable[int]) -> None:
        """Put shards of the content in, in place of what it holds of them, and take others out. Raises StorageError."""
        ...

    def opened_by(self) -> str:
        """The line by which it is opened."""
        ...


TARGETS = {
    "lance": "lora_clip.export.lance_table:LanceTable",
    "parquet": "lora_clip.export.parquet:ParquetFolder",
    "hf": "lora_clip.export.hugging_face:DatasetFolder",
}
"""What --to takes, each with its class, which is imported only where it is asked for."""


def open_target(kind: str, content: Content, into: Path, progress: Callable[[int], None]) -> Target:
    """The target of a kind at a place; `progress` is told of rows. Raises ConfigError where its package is missing."""
    module, _, name = TARGETS[kind].partition(":")
    target: Target = getattr(import_module(module), name)(content, into, progress)
    return target
