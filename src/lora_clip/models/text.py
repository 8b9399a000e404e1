"""Texts to unit vectors: a family's text tower with what the adapter holds for it, and its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from lora_clip.models.adapter_sums import merge_sum
from lora_clip.models.adapters import attach_text, merge
from lora_clip.models.checkpoint import Part
from lora_clip.models.generic import Family


class TextEncoder:
    """The text tower in float32 on the CPU, the adapter beside its weights, a weighted sum of `parts` in them.

    Raises ModelError or AdapterError.
    """

    def __init__(self, family: Family, base: Path, adapter: Path | None, parts: Sequence[Part] = ()) -> None:
        self._family = family
        self._tokenizer = family.load_tokenizer(base)
        self._model: Any = family.load_text(base)
        if parts:
            merge_sum(self._model, parts, self._merge)
        elif adapter is not None:
            attach_text(family, self._model, adapter)

    def _merge(self, folder: Path) -> None:
        if (adapted := attach_text(self._family, self._model, folder)) is not None:
            merge(adapted, folder)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeddings (N, D) float32 of unit norm; a text is cut where the model's context ends."""
        context = self._family.context(self._model, self._tokenizer)
        tokens = self._family.tokenize(self._tokenizer, texts, context)
        return functional.normalize(self._family.embed_texts(self._model, tokens), dim=-1)
