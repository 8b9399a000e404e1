"""Base + adapter as one embedder: each tower loaded, merged and checked when it is first needed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Self

import torch

from lora_clip.models.adapters import check_towers
from lora_clip.models.base import find_family
from lora_clip.models.captions import LoadedTexts, load_captions
from lora_clip.models.checkpoint import Checkpoint
from lora_clip.models.compute import Compute
from lora_clip.models.merging import Bases
from lora_clip.models.text import TextEncoder
from lora_clip.models.vision import LoadedImages, load_images
from lora_clip.types import PreprocessSpec


class MergedEmbedder:
    """The Embedder of a checkpoint; each tower is loaded, merged and checked when it is first needed.

    Never the base model in place of the adapted one: loading raises ModelError or AdapterError.
    """

    def __init__(self, checkpoint: Checkpoint, compute: Compute | None = None) -> None:
        self.checkpoint, self.compute = checkpoint, compute or Compute()
        self.family = find_family(checkpoint.base_folder)
        self.spec: PreprocessSpec = self.family.load_spec(checkpoint.base_folder)

    def load(self, captions: bool = False, own_NCHW: torch.Tensor | None = None, bases: Bases | None = None) -> Self:
        """Load the vision tower now, not with the first images, and one for captions. Raises Model- or AdapterError.

        `own_NCHW` are some of the user's images, uint8, to prove the network on; `bases` are shared by those of a pass.
        """
        self.images = load_images(self.family, self.checkpoint, self.spec, self.compute, own_NCHW, bases)
        assert not captions or self.captions.encoder
        return self

    @cached_property
    def images(self) -> LoadedImages:
        """The vision tower, ready to run."""
        return load_images(self.family, self.checkpoint, self.spec, self.compute)

    @cached_property
    def texts(self) -> TextEncoder | None:
        """The text tower with its tokenizer; None where the checkpoint has none."""
        base, adapter = self.checkpoint.base_folder, self.checkpoint.adapter_folder
        check_towers(self.family, self.checkpoint)
        return TextEncoder(self.family, base, adapter, self.checkpoint.parts) if self.family.has_text(base) else None

    @cached_property
    def captions(self) -> LoadedTexts:
        """The text tower as a job runs it on captions. Raises ModelError or AdapterError."""
        return load_captions(self.family, self.checkpoint, self.compute, self.width)

    @property
    def width(self) -> int:
        """The width D of an embedding."""
        return self.images.width

    def embed_images(self, pixels_BCHW: torch.Tensor, images: int | None = None) -> torch.Tensor:
        """Embeddings (B, D) of uint8 pixels (B, C, H, W), float32, of unit L2 norm: of the first `images` at least."""
        return self.images.encoder(pixels_BCHW, images)

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor | None:
        """Embeddings (N, D) of texts, float32, of unit L2 norm; None where the model has no text tower."""
        return None if self.texts is None else self.texts(texts)
