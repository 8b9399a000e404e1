"""Texts to unit vectors: a family's text tower with what the adapter holds for it, and its tokenizer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lora_clip.models.adapter_sums import merge_sum
from lora_clip.models.adapters import attach_text, merge
from lora_clip.models.checkpoint import Part
from lora_clip.models.compute import Compute
from lora_clip.models.encoder import CHUNK
from lora_clip.models.generic import Family

LENGTHS = (16, 32, 64)
"""To so many tokens a caption is padded, to the shortest that holds it; else to the model's context."""
PROBE_TEXTS = ("", "a photo of a red apple", "two dogs, a cat and a bicycle in front of a house by the sea " * 8)
"""Fixed texts, on which two text towers are compared: of no word, of the usual length, and one that is cut."""


class TextEncoder:
    """The text tower in float32 on the CPU, the adapter beside its weights, a weighted sum of `parts` in them.

    Raises ModelError or AdapterError.
    """

    def __init__(self, family: Family, base: Path, adapter: Path | None, parts: Sequence[Part] = ()) -> None:
        self._family, self._adapter = family, adapter
        self.tokenizer = family.load_tokenizer(base)
        self._model: Any = family.load_text(base)
        self._adapted: Any = None
        if parts:
            merge_sum(self._model, parts, self._merge)
        elif adapter is not None:
            self._adapted = attach_text(family, self._model, adapter)

    def _merge(self, folder: Path) -> None:
        if (adapted := attach_text(self._family, self._model, folder)) is not None:
            merge(adapted, folder)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeddings (N, D) float32 of unit norm; a text is cut where the model's context ends."""
        tokens = self._family.tokenize(self.tokenizer, texts, self.context)
        return functional.normalize(self._family.embed_texts(self._model, tokens), dim=-1)

    @property
    def context(self) -> int:
        """After how many tokens a text is cut."""
        return self._family.context(self._model, self.tokenizer)

    def merged(self) -> nn.Module:
        """The tower with the adapter in its weights, and no trace of PEFT: this encoder is used up."""
        if self._adapted is not None:
            assert self._adapter is not None
            merge(self._adapted, self._adapter)
        return self._model


class CaptionEncoder:
    """The text tower as a job runs it: merged, in `dtype`, on the device, on batches of fixed shapes.

    To how many tokens a caption is padded, its own length says, and batches are filled up: as with images, an embedding
    does not depend on its neighbours. `empty_D` is that of the empty text, for images without caption.
    """

    def __init__(self, family: Family, tower: nn.Module, tokenizer: Any, context: int, compute: Compute) -> None:
        self._family, self._tokenizer, self._context, self._device = family, tokenizer, context, compute.device
        self._at_once = CHUNK if compute.device.type == "cpu" else max(2, compute.batch_size)
        for parameter in tower.parameters():
            parameter.data = parameter.data.clone()  # out of the file's mapping, as the vision tower's
        self._tower = tower.to(compute.device, compute.dtype).eval().requires_grad_(False)
        # workers are forked after this, and a tokenizer with threads would complain in each of them
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.empty_D = self._embed([""])[0]

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeddings (N, D) float32 of unit norm, on the device; nothing is waited for."""
        embeddings_ND = self.empty_D.repeat(len(texts), 1)
        if places := [place for place, text in enumerate(texts) if text]:
            embeddings_ND[places] = self._embed([texts[place] for place in places])
        return embeddings_ND

    @torch.inference_mode()
    def _embed(self, texts: Sequence[str]) -> torch.Tensor:
        tokens = dict(self._family.tokenize(self._tokenizer, [*texts, ""], self._context))
        lengths = self._lengths(tokens)
        order = sorted(range(len(texts)), key=lambda place: lengths[place])
        embedded = [
            self._run(tokens, places, length)
            for length, alike in groupby(order, key=lambda place: lengths[place])
            for places in _batched([*alike], self._at_once - self._is_masked(tokens))
        ]
        return torch.cat(embedded)[torch.tensor(order).argsort()]

    def _lengths(self, tokens: Mapping[str, torch.Tensor]) -> list[int]:
        """To how many tokens each text is padded; those without a mask are padded to the context already."""
        if "attention_mask" not in tokens or self._tokenizer.padding_side != "right":
            return [self._context] * len(tokens["input_ids"])
        known = [length for length in LENGTHS if length < self._context]
        counts = tokens["attention_mask"].sum(dim=1).tolist()
        return [next((length for length in known if count <= length), self._context) for count in counts]

    def _run(self, tokens: Mapping[str, torch.Tensor], places: list[int], length: int) -> torch.Tensor:
        """Embeddings (n, D) of some texts, as a batch (B, length) that the empty one, which comes last, fills up."""
        filled = [*places, *[-1] * (self._at_once - len(places))]
        batch = {name: self._padded(name, values_NL[filled], length) for name, values_NL in tokens.items()}
        if not self._is_masked(tokens):
            batch.pop("attention_mask", None)
        found_BD = self._family.embed_texts(self._tower, batch).float()
        return functional.normalize(found_BD[: len(places)], dim=-1)

    def _is_masked(self, tokens: Mapping[str, torch.Tensor]) -> bool:
        """Whether the tower is told what is padding; every batch then has the empty text in it.

        With a mask that leaves nothing out transformers takes another way, so that an embedding would depend on its
        neighbours. And it looks into the mask for that, which waits for the device: where no token sees those behind
        it, there is no need for one.
        """
        needed = not self._family.causal_text or self._tokenizer.padding_side != "right"
        return needed and "attention_mask" in tokens

    def _padded(self, name: str, values_BL: torch.Tensor, length: int) -> torch.Tensor:
        lacking = length - values_BL.shape[1]
        sides = (0, lacking) if self._tokenizer.padding_side == "right" else (lacking, 0)
        filler = {"input_ids": self._tokenizer.pad_token_id, "token_type_ids": self._tokenizer.pad_token_type_id}
        return _to(functional.pad(values_BL, sides, value=filler.get(name, 0)), self._device)


def _to(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On the device, without waiting for what it is at."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def _batched(places: list[int], size: int) -> Iterator[list[int]]:
    return (places[at : at + size] for at in range(0, len(places), size))
