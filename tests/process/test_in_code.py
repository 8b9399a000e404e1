"""The model in code gives what the job writes."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import helpers.models  # noqa: F401 : one thread, as the job has
from helpers.jobs import uninterrupted
from lora_clip import load_embedder
from lora_clip.demo import DEMO


@pytest.mark.parametrize("batch_size", [64, 24])
def test_the_demos_pictures_have_the_jobs_embeddings(batch_size: int) -> None:
    """24: shards of 50 pictures are two batches and two pictures, and the last chunk of a batch is a short one."""
    batch = () if batch_size == 64 else (f"data.batch_size={batch_size}",)
    output = uninterrupted("model.dtype=float32", "output.dtype=float32", *batch)
    embedder = load_embedder(DEMO / "base", DEMO / "adapter", device="cpu", dtype="float32", batch_size=batch_size)
    for number in range(2):
        with tarfile.open(DEMO / "shards" / f"{number:05d}.tar") as tar:
            read = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        rows = pq.read_table(output / "metadata" / f"metadata_{number:06d}.parquet")
        pictures = [read[Path(path).name] for path in rows["image_path"].to_pylist()]
        found_ND = embedder.embed_images(pictures)
        stored_ND = np.load(output / "img_emb" / f"img_emb_{number:06d}.npy")
        assert np.abs(found_ND - stored_ND).max() < 1e-6
        assert found_ND.tobytes() == stored_ND.tobytes(), "batches have one shape: the same bytes"


def test_texts_find_the_pictures() -> None:
    output = uninterrupted("model.dtype=float32", "output.dtype=float32")
    embedder = load_embedder(adapter=DEMO / "adapter", device="cpu")
    rows = pq.read_table(output / "metadata")
    captions = rows["caption"].to_pylist()
    images_ND = np.concatenate([np.load(path) for path in sorted((output / "img_emb").iterdir())])
    nearest_N = (embedder.embed_texts(captions) @ images_ND.T).argmax(axis=1)
    assert np.mean([captions[found] == caption for found, caption in zip(nearest_N, captions, strict=True)]) > 0.9
