"""The text tower as a job runs it on captions: merged, cast, and checked against the unmerged model."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from lora_clip.errors import ModelError
from lora_clip.models.checkpoint import Checkpoint
from lora_clip.models.compute import Compute, dtype_name
from lora_clip.models.generic import Family
from lora_clip.models.proof import least_cosine
from lora_clip.models.text import PROBE_TEXTS, CaptionEncoder, TextEncoder
from lora_clip.models.vision import disagreement


@dataclass(frozen=True)
class LoadedTexts:
    """The text tower that embeds captions, and what a user may want to know of how it runs."""

    encoder: CaptionEncoder
    note: str | None = None


def load_captions(family: Family, checkpoint: Checkpoint, compute: Compute, width: int) -> LoadedTexts:
    """The text tower merged and cast; in float32 where it then differs from the unmerged model on the CPU.

    Raises ModelError or AdapterError, also where it differs in float32 too, or is not as wide as the images are.
    """
    base, adapter = checkpoint.base_folder, checkpoint.adapter_folder
    for dtype in dict.fromkeys([compute.product_dtype, torch.float32]):
        unmerged = TextEncoder(family, base, adapter, checkpoint.parts)  # from the files again: a cast loses digits
        expected_BD, tokenizer, context = unmerged(PROBE_TEXTS), unmerged.tokenizer, unmerged.context
        if expected_BD.shape[1] != width:
            raise ModelError(
                f"base {checkpoint.base}: its embeddings of texts are {expected_BD.shape[1]} wide, those of images "
                f"{width}, so they cannot be compared. embed=image embeds the images alone"
            )
        encoder = CaptionEncoder(family, unmerged.merged(), tokenizer, context, replace(compute, dtype=dtype))
        cosine = float(functional.cosine_similarity(expected_BD, encoder(PROBE_TEXTS).cpu()).min())
        if cosine >= least_cosine(dtype):
            wanted = compute.product_dtype
            note = f"the text tower computes in float32, since it differs too much in {dtype_name(wanted)}"
            return LoadedTexts(encoder, None if dtype == wanted else note)
    found = f"differs from the unmerged model (cosine {cosine:.6f}, at least {least_cosine(dtype)} is expected)"
    raise disagreement(checkpoint, replace(compute, compile=False, dtype=dtype), f"on captions {found}")
