"""The LightningModule: uint8 pixels in, unit vectors out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch

from lora_clip.models.adapter_kinds import AdapterSummary
from lora_clip.models.checkpoint import Checkpoint
from lora_clip.models.compute import Compute
from lora_clip.models.distance import Distance, distance
from lora_clip.models.embedder import MergedEmbedder
from lora_clip.models.merging import Bases
from lora_clip.models.proof import ENOUGH, Proof, own_images
from lora_clip.types import EmbeddedBatch, PixelBatch, WorkRange


class EmbeddingModule(pl.LightningModule):
    """Embeds batches with merged models that share nothing but the pixels: one a checkpoint, an output each.

    `output_dtype` is that of the embeddings it hands on; with `texts` captions are embedded too. Models are loaded in
    `configure_model`, straight onto the rank's device, whatever `compute` says of that.
    """

    def __init__(
        self, checkpoints: Sequence[Checkpoint], compute: Compute, output_dtype: torch.dtype, texts: bool = False
    ) -> None:
        super().__init__()
        self.checkpoints, self.compute, self.output_dtype, self.texts = checkpoints, compute, output_dtype, texts
        # no submodules: Lightning would cast (trainer.precision) and broadcast what was just merged, cast and checked
        self.embedders: dict[int, MergedEmbedder] = {}
        self._distances: dict[int, Distance] = {}

    def adapter_summary(self, output: int) -> AdapterSummary | None:
        """What an output's adapter is, once its model is loaded; None where there is none."""
        return self.embedders[output].images.adapter if output in self.embedders else None

    def proof(self, output: int) -> Proof | None:
        """How close an output's network comes to float32 on images of the user's own, once it is loaded; on rank 0."""
        return self.embedders[output].images.proof if output in self.embedders else None

    def distance(self, output: int) -> Distance | None:
        """What decoding on the device changes for an output's network, once it is loaded; on rank 0, where it does."""
        return self._distances.get(output)

    @property
    def notes(self) -> list[str]:
        """What a user may want to know of how the models run, once they are loaded."""
        embedders = self.embedders.values()
        notes = [*(one.images.note for one in embedders), *(one.captions.note for one in embedders if self.texts)]
        return list(dict.fromkeys(note for note in notes if note))

    @property
    def _data(self) -> Any:
        """The job's PixelDataModule; None outside a job."""
        return getattr(self.trainer, "datamodule", None)

    @property
    def _plan(self) -> Any:
        """The rank's plan, which tells what each output lacks; None outside a job: every output lacks everything."""
        return getattr(self._data, "plan", None)

    def configure_model(self) -> None:
        """Load, merge and check the models of outputs that lack something, once. Raises ModelError or AdapterError."""
        self.compute = compute = self._resolved()
        needed = sorted(range(len(self.checkpoints)) if self._plan is None else self._plan.needed)
        missing = [output for output in needed if output not in self.embedders]
        own_NCHW = self._own_images() if missing else None
        bases = Bases(keep=len(missing) > 1)
        for output in missing:
            self.embedders[output] = MergedEmbedder(self.checkpoints[output], compute).load(self.texts, own_NCHW, bases)
        self._measure_decoding(missing, compute)

    def _measure_decoding(self, outputs: Sequence[int], compute: Compute) -> None:
        """Compare some of the user's images, decoded on the device, with the same decoded on the CPU."""
        if not outputs or self._plan is None or not self.trainer.is_global_zero:
            return
        # some may be no JPEGs, and as many as ENOUGH are wanted
        if (both := self._data.first_both(2 * ENOUGH)) is not None:
            for output in outputs:
                self._distances[output] = distance(self.embedders[output].images.encoder, compute, *both)

    def _resolved(self) -> Compute:
        """How the networks are run on this rank."""
        compiled = self.compute.compile
        if compiled is None:
            compiled = self._plan is not None and self._plan.compile
        return replace(self.compute, device=self.trainer.strategy.root_device, compile=compiled)

    def _own_images(self) -> torch.Tensor | None:
        """Some of the user's images to prove the networks on; one rank is enough for that."""
        if self._plan is None or not self.trainer.is_global_zero:
            return None
        return self._data.first_images(own_images(self.compute.dtype))

    def predict_step(self, batch: PixelBatch, batch_idx: int) -> dict[int, EmbeddedBatch]:
        """Embeddings (B, D) for each output that lacks the batch, on the device; nothing is waited for."""
        embedded = {output: self._embed(output, batch) for output in self._lacking(batch.work)}
        batch.release()
        if self.texts:  # after all images: a GPU is at work on them while captions are tokenised
            for output, one in embedded.items():
                one.texts_BD = self._embed_captions(output, batch)
        return embedded

    def _embed(self, output: int, batch: PixelBatch) -> EmbeddedBatch:
        embeddings_BD = self.embedders[output].embed_images(batch.pixels_BCHW, len(batch.rows)).to(self.output_dtype)
        return EmbeddedBatch(embeddings_BD, batch.rows, batch.rejects, batch.work, batch.last, batch.counted)

    def _embed_captions(self, output: int, batch: PixelBatch) -> torch.Tensor:
        return self.embedders[output].captions.encoder([row.text for row in batch.rows]).to(self.output_dtype)

    def _lacking(self, work: WorkRange) -> Collection[int]:
        return range(len(self.checkpoints)) if self._plan is None else self._plan.lacking(work)
