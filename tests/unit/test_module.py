"""The LightningModule: what Trainer.predict gives for a batch, with its identities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from helpers.models import edit_config, lowest_cosine, random_pixels, reference, save_adapter, save_base
from lora_clip.app.quiet import quiet_lightning
from lora_clip.errors import ModelError
from lora_clip.models.checkpoint import Checkpoint, find_checkpoint
from lora_clip.models.compute import Compute
from lora_clip.models.module import EmbeddingModule
from lora_clip.types import EmbeddedBatch, ImageRow, PixelBatch, Reject, WorkRange

ROW = ImageRow("a.jpg", "a", 0, 0, 640, 480, None, None, None)
REJECT = Reject(0, 1, "b", "decode", "empty file")
PIXELS_BCHW = random_pixels(4)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    base = save_base(tmp_path / "base")
    return find_checkpoint(str(base), str(save_adapter(tmp_path / "adapter", base)))


def module_of(checkpoint: Checkpoint, output_dtype: torch.dtype = torch.float32) -> EmbeddingModule:
    return EmbeddingModule([checkpoint], Compute(batch_size=4), output_dtype)


class Collect(pl.Callback):
    def __init__(self) -> None:
        self.outputs: list[dict[int, EmbeddedBatch]] = []

    def on_predict_batch_end(self, trainer: Any, module: Any, outputs: dict[int, EmbeddedBatch], *_: Any) -> None:
        self.outputs.append(outputs)


def predict(module: EmbeddingModule, batches: list[PixelBatch]) -> list[EmbeddedBatch]:
    quiet_lightning()
    collect = Collect()
    silent: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", callbacks=[collect], enable_checkpointing=False, **silent)
    data: Any = torch.utils.data.DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    trainer.predict(module, data, return_predictions=False)
    return [embedded[0] for embedded in collect.outputs]


def batch_of(pixels_BCHW: torch.Tensor = PIXELS_BCHW, last: bool = True) -> PixelBatch:
    return PixelBatch(pixels_BCHW, [ROW], [REJECT], WorkRange(0, 0, 5), last)


@pytest.mark.parametrize("output_dtype", [torch.float16, torch.float32])
def test_predict_embeds_with_the_adapter(checkpoint: Checkpoint, output_dtype: torch.dtype) -> None:
    module = module_of(checkpoint, output_dtype)
    assert (module.adapter_summary(0), module.notes) == (None, [])
    first, second = predict(module, [batch_of(last=False), batch_of()])
    expected_BD = reference(checkpoint.base_folder, checkpoint.adapter_folder, "CLIPModel", PIXELS_BCHW)
    assert first.embeddings_BD.dtype == output_dtype
    assert lowest_cosine(first.embeddings_BD, expected_BD) >= 0.9999
    assert torch.equal(first.embeddings_BD, second.embeddings_BD)
    assert (second.rows, second.rejects, second.work, second.last) == ([ROW], [REJECT], WorkRange(0, 0, 5), True)
    assert not first.last
    adapter = module.adapter_summary(0)
    assert adapter is not None and adapter.layers == 4 and module.notes == []
    assert first.texts_BD is None and not {"texts", "captions"} & set(vars(module.embedders[0])), "images cost no text"


def test_model_is_loaded_once(checkpoint: Checkpoint) -> None:
    module = module_of(checkpoint)
    predict(module, [batch_of()])
    loaded = module.embedders[0]
    predict(module, [batch_of()])
    assert module.embedders[0] is loaded


def test_lightning_has_no_weights_to_broadcast_or_cast(checkpoint: Checkpoint) -> None:
    module = module_of(checkpoint)
    predict(module, [batch_of()])
    assert not list(module.parameters()) and not list(module.buffers())


def test_processor_of_another_size_than_the_tower(checkpoint: Checkpoint) -> None:
    size = {"height": 64, "width": 64}
    edit_config(checkpoint.base_folder / "preprocessor_config.json", size=size, crop_size=size)
    with pytest.raises(ModelError, match=r"images of \(64, 64\) pixels, its vision tower takes \(32, 32\)"):
        predict(module_of(checkpoint), [batch_of()])
