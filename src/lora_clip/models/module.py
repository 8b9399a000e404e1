"""The LightningModule: uint8 pixels in, unit vectors out."""

from __future__ import annotations

from dataclasses import replace

import lightning.pytorch as pl
import torch

from lora_clip.models.adapter_kinds import AdapterSummary
from lora_clip.models.checkpoint import Checkpoint
from lora_clip.models.compute import Compute
from lora_clip.models.embedder import MergedEmbedder
from lora_clip.types import EmbeddedBatch, PixelBatch


class EmbeddingModule(pl.LightningModule):
    """Embeds batches with the merged model; `output_dtype` is that of the embeddings it hands on.

    The model is loaded in `configure_model`, straight onto the rank's device, whatever `compute` says of that.
    """

    def __init__(self, checkpoint: Checkpoint, compute: Compute, output_dtype: torch.dtype) -> None:
        super().__init__()
        self.checkpoint, self.compute, self.output_dtype = checkpoint, compute, output_dtype
        # no submodule: Lightning would cast (trainer.precision) and broadcast what was just merged, cast and checked
        self.embedder: MergedEmbedder | None = None

    @property
    def adapter_summary(self) -> AdapterSummary | None:
        """What the adapter is, once the model is loaded; None where there is none."""
        return None if self.embedder is None else self.embedder.images.adapter

    @property
    def note(self) -> str | None:
        """What a user may want to know of how the model runs, once it is loaded."""
        return None if self.embedder is None else self.embedder.images.note

    def configure_model(self) -> None:
        """Load, merge and check the model, once. Raises ModelError or AdapterError."""
        if self.embedder is None:
            device = self.trainer.strategy.root_device
            self.embedder = MergedEmbedder(self.checkpoint, replace(self.compute, device=device)).load()

    def predict_step(self, batch: PixelBatch, batch_idx: int) -> EmbeddedBatch:
        """The batch's embeddings (B, D) in the output's dtype, on the device; nothing is waited for."""
        assert self.embedder is not None
        embeddings_BD = self.embedder.embed_images(batch.pixels_BCHW).to(self.output_dtype)
        batch.release()
        return EmbeddedBatch(embeddings_BD, batch.rows, batch.rejects, batch.work, batch.last)
