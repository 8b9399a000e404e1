"""The LightningModule: uint8 pixels in, unit vectors out."""

from __future__ import annotations

import lightning.pytorch as pl
import torch

from lora_clip.errors import ModelError
from lora_clip.models.adapters import AdapterSummary
from lora_clip.models.checkpoint import Checkpoint
from lora_clip.models.clip import ImageEncoder, Normalisation, load_encoder
from lora_clip.types import EmbeddedBatch, PixelBatch


class ClipEmbedder(pl.LightningModule):
    """Embeds batches with the merged model; `output_dtype` is that of the embeddings it hands on.

    The model is loaded in `configure_model`, straight onto the rank's device.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        normalisation: Normalisation,
        image_size: tuple[int, int],
        dtype: torch.dtype,
        output_dtype: torch.dtype,
        compile_model: bool = False,
    ) -> None:
        super().__init__()
        self.checkpoint, self.normalisation, self.image_size = checkpoint, normalisation, image_size
        self.model_dtype, self.output_dtype, self.compile_model = dtype, output_dtype, compile_model
        self.encoder: ImageEncoder | None = None
        self.adapter_summary: AdapterSummary | None = None

    def configure_model(self) -> None:
        """Load, check and merge the model, once."""
        if self.encoder is not None:
            return
        device = self.trainer.strategy.root_device
        self.encoder, self.adapter_summary = load_encoder(self.checkpoint, self.normalisation, self.model_dtype, device)
        if self.image_size != (self.encoder.image_size,) * 2:
            raise ModelError(
                f"base {self.checkpoint.base}: its preprocessor makes images of {self.image_size} pixels, "
                f"its vision tower takes {self.encoder.image_size}"
            )
        if self.compile_model:
            self.encoder.tower.compile(dynamic=False)

    def predict_step(self, batch: PixelBatch, batch_idx: int) -> EmbeddedBatch:
        """The batch's embeddings (B, D) in the output's dtype, on the device; nothing is waited for."""
        assert self.encoder is not None
        embeddings_BD = self.encoder(batch.pixels_BCHW).to(self.output_dtype)
        batch.release()
        return EmbeddedBatch(embeddings_BD, batch.rows, batch.rejects, batch.work, batch.last)
