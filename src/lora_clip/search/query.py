"""Queries into the space of an output: text and images, by the very model and adapter that made its embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from lora_clip.errors import ModelError, OutputError
from lora_clip.models.base import Embedder
from lora_clip.models.checkpoint import find_checkpoint
from lora_clip.models.digests import digests
from lora_clip.models.embedder import MergedEmbedder
from lora_clip.pixels.decode import fit, prepare

TEXTS_AT_ONCE = 256


class QueryEncoder:
    """Encodes queries with an Embedder on the CPU, images decoded as the job decoded them."""

    def __init__(self, embedder: Embedder, decoding: str, orientation: str = "ignore") -> None:
        self.embedder, self.decoding = embedder, decoding
        self.spec = replace(embedder.spec, orientation=orientation)

    @classmethod
    def of(cls, manifest: Mapping[str, Any], base: str | None = None, adapter: str | None = None) -> QueryEncoder:
        """The encoder of an output; `base` and `adapter` say where they lie now, if not where the manifest has them.

        Raises OutputError where the model found there is not the one that made the embeddings.
        """
        model, fingerprint = manifest["model"], manifest["fingerprint"]
        found = find_checkpoint(base or model["base"], (adapter or model["adapter"]) if model["adapter"] else None)
        embedder = MergedEmbedder(found)
        turned = fingerprint["preprocessing"].get("orientation", "ignore")
        encoder = cls(embedder, fingerprint["decode"], turned)
        now = {**digests(found), "preprocessing": encoder.spec.to_json()}
        if changed := [name for name in now if now[name] != fingerprint[name]]:
            raise OutputError(
                f"{' and '.join(changed)} of the embeddings are not those of {found.base}"
                f"{f' + {found.adapter}' if found.adapter else ''}: a search with another model would find nothing "
                "sensible. Say where the model that made them lies now (--base, --adapter), or embed anew"
            )
        return encoder

    def image(self, image: bytes | Image.Image) -> np.ndarray:
        """The embedding (D,) of an image, or of an image file's bytes, as the job would have made it.

        Raises ImageError for bytes that are not an image that is read.
        """
        spec = self.spec
        pixels_1CHW = torch.empty(1, 3, *spec.crop, dtype=torch.uint8)
        if isinstance(image, bytes):
            prepare(image, spec, pixels_1CHW[0], self.decoding)
        else:
            fit(torch.from_numpy(np.array(image.convert("RGB"))), spec, pixels_1CHW[0])
        with torch.inference_mode():
            return self.embedder.embed_images(pixels_1CHW)[0].numpy()

    def text(self, texts: Sequence[str]) -> np.ndarray:
        """The embeddings (N, D) of texts. Raises ModelError where the model has no text tower."""
        batches = [texts[at : at + TEXTS_AT_ONCE] for at in range(0, len(texts), TEXTS_AT_ONCE)]
        found = [embeddings for batch in batches if (embeddings := self.embedder.embed_texts(batch)) is not None]
        if len(found) < len(batches):
            raise ModelError("the model of these embeddings has no text tower: only images can be searched for")
        return torch.cat(found).numpy()
