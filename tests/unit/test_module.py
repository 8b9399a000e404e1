"""The LightningModule: what Trainer.predict gives for a batch, with its identities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from helpers.models import NORMALISATION, lowest_cosine, random_pixels, reference, save_adapter, save_base
from lora_clip.app.quiet import quiet_lightning
from lora_clip.errors import ModelError
from lora_clip.models import module
from lora_clip.models.checkpoint import Checkpoint, find_checkpoint
from lora_clip.models.module import ClipEmbedder
from lora_clip.types import EmbeddedBatch, ImageRow, PixelBatch, Reject, WorkRange

ROW = ImageRow("a.jpg", "a", 0, 0, 640, 480, None, None, None)
REJECT = Reject(0, 1, "b", "decode", "empty file")
PIXELS_BCHW = random_pixels(4)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    base = save_base(tmp_path / "base")
    return find_checkpoint(str(base), str(save_adapter(tmp_path / "adapter", base)))


def embedder_of(checkpoint: Checkpoint, output_dtype: torch.dtype = torch.float32, **more: Any) -> ClipEmbedder:
    size = more.pop("image_size", (32, 32))
    return ClipEmbedder(checkpoint, NORMALISATION, size, torch.float32, output_dtype, **more)


class Collect(pl.Callback):
    def __init__(self) -> None:
        self.outputs: list[EmbeddedBatch] = []

    def on_predict_batch_end(self, trainer: Any, module: Any, outputs: EmbeddedBatch, *_: Any) -> None:
        self.outputs.append(outputs)


def predict(embedder: ClipEmbedder, batches: list[PixelBatch]) -> list[EmbeddedBatch]:
    quiet_lightning()
    collect = Collect()
    silent: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", callbacks=[collect], enable_checkpointing=False, **silent)
    data: Any = torch.utils.data.DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    trainer.predict(embedder, data, return_predictions=False)
    return collect.outputs


def batch_of(pixels_BCHW: torch.Tensor = PIXELS_BCHW, last: bool = True) -> PixelBatch:
    return PixelBatch(pixels_BCHW, [ROW], [REJECT], WorkRange(0, 0, 5), last)


@pytest.mark.parametrize("output_dtype", [torch.float16, torch.float32])
def test_predict_embeds_with_the_adapter(checkpoint: Checkpoint, output_dtype: torch.dtype) -> None:
    embedder = embedder_of(checkpoint, output_dtype)
    first, second = predict(embedder, [batch_of(last=False), batch_of()])
    expected_BD = reference(checkpoint.base_folder, checkpoint.adapter_folder, "CLIPModel", PIXELS_BCHW)
    assert first.embeddings_BD.dtype == output_dtype
    assert lowest_cosine(first.embeddings_BD, expected_BD) >= 0.9999
    assert torch.equal(first.embeddings_BD, second.embeddings_BD)
    assert (second.rows, second.rejects, second.work, second.last) == ([ROW], [REJECT], WorkRange(0, 0, 5), True)
    assert not first.last
    assert embedder.adapter_summary is not None
    assert embedder.adapter_summary.layers == 4


def test_model_is_loaded_once(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = embedder_of(checkpoint)
    predict(embedder, [batch_of()])
    monkeypatch.setattr(module, "load_encoder", lambda *_: pytest.fail("loaded again"))
    predict(embedder, [batch_of()])


def test_processor_of_another_size_than_the_tower(checkpoint: Checkpoint) -> None:
    with pytest.raises(ModelError, match=r"images of \(64, 64\) pixels, its vision tower takes 32"):
        predict(embedder_of(checkpoint, image_size=(64, 64)), [batch_of()])


def test_compile_is_asked_for_fixed_shapes(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: asked.append(options))
    predict(embedder_of(checkpoint, compile_model=True), [batch_of()])
    assert asked == [{"dynamic": False}]
