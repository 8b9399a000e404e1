"""Embed a whole image collection with a LoRA-adapted CLIP model: every image exactly once.

from lora_clip import load_embedder, open_output
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_clip.api import load_embedder
    from lora_clip.search import open_output

__version__ = "0.1.0"
__all__ = ["__version__", "load_embedder", "open_output"]

_HOMES = {"load_embedder": "lora_clip.api", "open_output": "lora_clip.search"}
"""What is imported when it is first asked for: `import lora_clip` alone brings no torch."""


def __getattr__(name: str) -> Any:
    """An exported member, from the module that it lives in."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
