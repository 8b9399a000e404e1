"""Outputs without a job: embeddings of the tests' own making, written and recorded as a job does."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lora_clip.output import provenance
from lora_clip.output.store import Store
from lora_clip.sources.base import Shard
from lora_clip.types import ImageRow, WorkRange


def vectors(count: int, width: int = 16, seed: int = 0, clusters: int = 0) -> np.ndarray:
    """Random embeddings (count, width) float16 of unit norm; with `clusters`, near so many centres."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(count, width))
    if clusters:
        centres = np.random.default_rng(99).normal(size=(clusters, width))
        values = centres[rng.integers(0, clusters, count)] + 0.5 * values
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)


def write_output(root: Path, shards: dict[int, np.ndarray], fingerprint: str = "model") -> Path:
    """An output of these shards' embeddings; what is there already stays."""
    root.mkdir(parents=True, exist_ok=True)
    store = Store(root)
    for shard, embeddings_ND in shards.items():
        rows = [image_row(shard, position) for position in range(len(embeddings_ND))]
        store.write(0, WorkRange(shard, 0, len(rows)), True, embeddings_ND, rows, [])
    known = [
        Shard(shard, "tar", f"/data/{shard}.tar", len(embeddings_ND), 0, str(shard))
        for shard, embeddings_ND in shards.items()
    ]
    provenance.write_fingerprint(root, {"model": fingerprint, "image_key": None})
    provenance.write_inputs(root, ({**shard.to_json(), "wanted": shard.images} for shard in known))
    return root


def image_row(shard: int, position: int) -> ImageRow:
    """A row of metadata."""
    key = f"{shard:03d}-{position:06d}"
    path = f"/data/{shard}.tar/{key}.jpg"
    return ImageRow(path, key, shard, position, 8, 8, f"picture {key}", f"https://example.org/{key}", None)
