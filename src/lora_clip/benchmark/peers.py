"""What others use for the same job, with the adapter merged into the model, as their users would have it.

Each loop yields arrays of embeddings (n, D).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lora_clip.benchmark.loops import adapted, devices, unit
from lora_clip.benchmark.photographs import Photograph, chunks
from lora_clip.io.process import cores
from lora_clip.models.compute import resolve_dtype
from lora_clip.models.quiet import quiet_transformers

BATCH = 64
OPEN = 256
"""Images that sentence-transformers is handed at a time."""


class _Processed(Dataset[torch.Tensor]):
    """Images as transformers' processor makes them, in the workers of a DataLoader."""

    def __init__(self, photographs: Sequence[Photograph], processor: Any) -> None:
        self.photographs, self.processor = photographs, processor

    def __len__(self) -> int:
        return len(self.photographs)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.processor(images=self.photographs[index].open(), return_tensors="pt")["pixel_values"][0]


def data_loader(photographs: Sequence[Photograph], base: Path, adapter: Path) -> Iterator[np.ndarray]:
    """What a careful engineer writes: the processor in worker processes, batches, bfloat16 where it is fast."""
    from transformers import CLIPImageProcessor

    device = devices()[0]
    dtype = resolve_dtype("auto", device.type)
    model = adapted(base, adapter).merge_and_unload().to(device, dtype)
    images = _Processed(photographs, CLIPImageProcessor.from_pretrained(base))
    loader = DataLoader(images, BATCH, num_workers=cores(), pin_memory=device.type == "cuda")
    with torch.inference_mode():
        for pixels_BCHW in loader:
            features = model.get_image_features(pixel_values=pixels_BCHW.to(device, dtype, non_blocking=True))
            yield unit(features).cpu().numpy()


def sentence_transformers(photographs: Sequence[Photograph], base: Path, adapter: Path) -> Iterator[np.ndarray]:
    """sentence-transformers over batches of open images, with the adapter merged into its CLIP model."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer

    with tempfile.TemporaryDirectory() as folder:
        merge_into(Path(folder), base, adapter)
        model = SentenceTransformer(modules=[Transformer(folder)], device=str(devices()[0]))
    for batch in chunks(photographs, OPEN):
        images = [photograph.open() for photograph in batch]
        yield model.encode(images, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False)


def merge_into(folder: Path, base: Path, adapter: Path) -> None:
    """Save the base with the adapter merged into it, and its processor and tokenizer."""
    from transformers import AutoProcessor

    with quiet_transformers():
        adapted(base, adapter).merge_and_unload().save_pretrained(folder)
        AutoProcessor.from_pretrained(base).save_pretrained(folder)
