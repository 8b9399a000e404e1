"""The patterns of the report that this project answers: transformers' CLIPModel and processor, PEFT's adapter unmerged.

The model computes in the checkpoint's own dtype, as the report's does. Each loop yields arrays of embeddings (n, D).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lora_clip.benchmark.photographs import Photograph, chunks
from lora_clip.models.quiet import quiet_transformers

POOL = 8
"""Threads of the report's pool."""
BATCH = 32


class Engine:
    """The report's engine: a model with its adapter on one device."""

    def __init__(self, base: Path, adapter: Path, device: torch.device) -> None:
        from transformers import CLIPImageProcessor

        self.device, self.model = device, adapted(base, adapter).to(device)
        self.processor = CLIPImageProcessor.from_pretrained(base)

    @torch.inference_mode()
    def get_image_embeddings(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Embeddings (len(images), D) of unit norm."""
        inputs = self.processor(images=list(images), return_tensors="pt").to(self.device)
        return unit(self.model.get_image_features(pixel_values=inputs["pixel_values"])).cpu().numpy()

    def get_image_embedding(self, photograph: Photograph) -> np.ndarray:
        """The embedding of one image, (1, D)."""
        return self.get_image_embeddings([photograph.open()])


def adapted(base: Path, adapter: Path) -> Any:
    """The CLIPModel with the adapter beside its weights, as PEFT loads it."""
    from peft import PeftModel
    from transformers import CLIPModel

    with quiet_transformers():
        return PeftModel.from_pretrained(CLIPModel.from_pretrained(base), adapter).eval()


def unit(features: Any) -> torch.Tensor:
    """Float32 rows of unit norm; transformers 5 hands out an object around them."""
    embeddings_BD = getattr(features, "pooler_output", features).float()
    return embeddings_BD / embeddings_BD.norm(dim=-1, keepdim=True)


def devices() -> list[torch.device]:
    """All GPUs, else the CPU."""
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())] or [torch.device("cpu")]


def one_at_a_time(photographs: Sequence[Photograph], base: Path, adapter: Path) -> Iterator[np.ndarray]:
    """The report's `lora_adapted_indexing.py`: 13 hours for 29,104 images."""
    engine = Engine(base, adapter, devices()[0])
    for photograph in photographs:
        yield engine.get_image_embedding(photograph)


def batches_one_at_a_time(photographs: Sequence[Photograph], base: Path, adapter: Path) -> Iterator[np.ndarray]:
    """The report's export: batches in name, one image at a time inside them."""
    engine = Engine(base, adapter, devices()[0])
    for batch in chunks(photographs, BATCH):
        yield np.concatenate([engine.get_image_embedding(photograph) for photograph in batch])


def thread_pool(photographs: Sequence[Photograph], base: Path, adapter: Path) -> Iterator[np.ndarray]:
    """The report's proposal: a pool of 8 threads, one image a call, devices in turn."""
    engines = [Engine(base, adapter, device) for device in devices()]
    with ThreadPoolExecutor(POOL) as executor:
        yield from gathered(
            executor.submit(engines[index % len(engines)].get_image_embedding, photograph)
            for index, photograph in enumerate(photographs)
        )


def thread_pool_of_batches(photographs: Sequence[Photograph], base: Path, adapter: Path) -> Iterator[np.ndarray]:
    """The report's hybrid: batches, each whole in one thread, devices in turn."""
    engines = [Engine(base, adapter, device) for device in devices()]

    def embed(batch: Sequence[Photograph], engine: Engine) -> np.ndarray:
        return engine.get_image_embeddings([photograph.open() for photograph in batch])

    with ThreadPoolExecutor(POOL) as executor:
        yield from gathered(
            executor.submit(embed, batch, engines[index % len(engines)])
            for index, batch in enumerate(chunks(photographs, BATCH))
        )


def gathered(futures: Iterator[Future[np.ndarray]]) -> Iterator[np.ndarray]:
    """The results in order."""
    for future in list(futures):
        yield future.result()
