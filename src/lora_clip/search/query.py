"""Queries into the space of an output: text and images, by the very model and adapter that made its embeddings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from lora_clip.errors import ModelError, OutputError
from lora_clip.models.adapters import attach_text
from lora_clip.models.checkpoint import Checkpoint, digests, find_checkpoint
from lora_clip.models.clip import ImageEncoder, Normalisation, load_encoder
from lora_clip.models.preprocess import load_spec
from lora_clip.models.quiet import quiet_transformers
from lora_clip.pixels.decode import fit, prepare

CPU = torch.device("cpu")
TEXTS_AT_ONCE = 256


class QueryEncoder:
    """Encodes queries on the CPU in float32, each tower loaded when it is first needed."""

    def __init__(self, checkpoint: Checkpoint, decoding: str) -> None:
        self.checkpoint, self.decoding = checkpoint, decoding
        self.spec = load_spec(checkpoint.base_folder)

    @classmethod
    def of(cls, manifest: Mapping[str, Any], base: str | None = None, adapter: str | None = None) -> QueryEncoder:
        """The encoder of an output; `base` and `adapter` say where they lie now, if not where the manifest has them.

        Raises OutputError where the model found there is not the one that made the embeddings.
        """
        model, fingerprint = manifest["model"], manifest["fingerprint"]
        found = find_checkpoint(base or model["base"], (adapter or model["adapter"]) if model["adapter"] else None)
        encoder = cls(found, fingerprint["decode"])
        now = {**digests(found), "preprocessing": encoder.spec.to_json()}
        if changed := [name for name in now if now[name] != fingerprint[name]]:
            raise OutputError(
                f"{' and '.join(changed)} of the embeddings are not those of {found.base}"
                f"{f' + {found.adapter}' if found.adapter else ''}: a search with another model would find nothing "
                "sensible. Say where the model that made them lies now (--base, --adapter), or embed anew"
            )
        return encoder

    @cached_property
    def images(self) -> ImageEncoder:
        """The vision tower with the adapter merged. Raises ModelError or AdapterError."""
        normalisation = Normalisation(self.spec.scale, self.spec.mean, self.spec.std)
        return load_encoder(self.checkpoint, normalisation, torch.float32, CPU)[0]

    @cached_property
    def texts(self) -> TextEncoder:
        """The text tower. Raises ModelError or AdapterError."""
        return TextEncoder(self.checkpoint.base_folder, self.checkpoint.adapter_folder)

    def image(self, image: bytes | Image.Image) -> np.ndarray:
        """The embedding (D,) of an image, or of an image file's bytes, as the job would have made it.

        Raises ImageError for bytes that are not an image that is read.
        """
        pixels_1CHW = torch.empty(1, 3, *self.spec.crop, dtype=torch.uint8)
        if isinstance(image, bytes):
            prepare(image, self.spec, pixels_1CHW[0], self.decoding)
        else:
            fit(torch.from_numpy(np.array(image.convert("RGB"))), self.spec, pixels_1CHW[0])
        with torch.inference_mode():
            return self.images(pixels_1CHW)[0].numpy()

    def text(self, texts: Sequence[str]) -> np.ndarray:
        """The embeddings (N, D) of texts."""
        parts = (texts[at : at + TEXTS_AT_ONCE] for at in range(0, len(texts), TEXTS_AT_ONCE))
        return np.concatenate([self.texts(part) for part in parts])


class TextEncoder:
    """CLIP's text tower with its projection and its tokenizer, in float32, with what the adapter holds for text."""

    def __init__(self, base: Path, adapter: Path | None) -> None:
        self._tokenizer = _load_tokenizer(base)
        self._model = _load_text(base)
        if adapter is not None:
            attach_text(self._model, adapter)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings (N, D) float32 of unit norm; a text is cut where the model's context ends."""
        length = self._model.config.max_position_embeddings
        tokens = self._tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=length,
            return_tensors="pt",
            return_attention_mask=True,
        )
        return functional.normalize(self._model(**tokens).text_embeds, dim=-1).numpy()


def _load_tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise ModelError(f"base {folder} has no tokenizer (tokenizer.json): only images can be searched for")
    try:
        with quiet_transformers():
            return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers meets untrusted files here
        raise ModelError(f"the tokenizer of base {folder} cannot be loaded: {type(error).__name__}: {error}") from error


def _load_text(folder: Path) -> Any:
    """The text tower with projection. Raises ModelError for a checkpoint without, or with a part of it."""
    from transformers import CLIPConfig, CLIPTextModelWithProjection

    if json.loads((folder / "config.json").read_text()).get("model_type") != "clip":
        raise ModelError(f"base {folder} has no text tower: only images can be searched for")
    whole: Any = CLIPConfig.from_pretrained(folder)
    whole.text_config.projection_dim = whole.projection_dim
    try:
        with quiet_transformers():
            loaded: Any = CLIPTextModelWithProjection.from_pretrained(
                folder,
                config=whole.text_config,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # transformers meets untrusted files here
        raise ModelError(f"base {folder} has no text tower that loads: {type(error).__name__}: {error}") from error
    model, info = loaded
    if lacking := sorted(info["missing_keys"]):
        raise ModelError(f"base {folder} lacks {len(lacking)} weights of a CLIP text model, such as {lacking[0]}")
    return model.eval().requires_grad_(False)
