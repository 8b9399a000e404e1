"""Zero-shot labels: for each row of an output the label whose text is nearest to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lora_clip.errors import ConfigError
from lora_clip.io.atomic import replaced
from lora_clip.models.embedder import MergedEmbedder
from lora_clip.models.logits import LogitScale, read_logit_scale
from lora_clip.output.rows import Block
from lora_clip.output.tables import write_table
from lora_clip.search.collection import Collection

COLUMNS = ("shard", "position", "key", "image_path")
"""What is copied from a row's metadata: by shard and position the two are joined."""
LABELS_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("position", pa.int64()),
        ("key", pa.string()),
        ("image_path", pa.string()),
        ("label", pa.string()),
        ("score", pa.float32()),
        ("probability", pa.float32()),
    ]
)
SLOT = "{}"
"""Where a template has the label."""
COSINES_AT_ONCE = 1 << 24


def label_rows(collection: Collection, labels: Sequence[str], templates: Sequence[str], path: Path) -> Counter[str]:
    """Write the best label of each row as a Parquet file; returns how many images each label got.

    Raises ConfigError for a template without a slot, ModelError where the model has no text tower, OutputError where it
    is not the one that made the embeddings, StorageError.
    """
    texts_LD, scale = embed_labels(collection, labels, templates), _logit_scale(collection)
    counts: Counter[str] = Counter(dict.fromkeys(labels, 0))

    def tables() -> Iterator[pa.Table]:
        for block in collection.rows.blocks.values():
            for table in _label_block(block, labels, texts_LD, scale):
                counts.update(table["label"].to_pylist())
                yield table

    with replaced(path) as file:
        write_table(tables(), LABELS_SCHEMA, file)
    return counts


def embed_labels(collection: Collection, labels: Sequence[str], templates: Sequence[str]) -> np.ndarray:
    """The embeddings (L, D) of labels, of unit norm: the mean over all templates."""
    if bad := [template for template in templates if SLOT not in template]:
        raise ConfigError(f'template "{bad[0]}" has no {SLOT} where the label is to stand, as in "a photo of a {SLOT}"')
    texts = [template.replace(SLOT, label) for template in templates for label in labels]
    found_TLD = collection.encoder.text(texts).reshape(len(templates), len(labels), -1)
    mean_LD = found_TLD.mean(axis=0)
    return mean_LD / np.linalg.norm(mean_LD, axis=1, keepdims=True)


def _logit_scale(collection: Collection) -> LogitScale | None:
    embedder = collection.encoder.embedder
    return read_logit_scale(embedder.checkpoint.base_folder) if isinstance(embedder, MergedEmbedder) else None


def _label_block(
    block: Block, labels: Sequence[str], texts_LD: np.ndarray, scale: LogitScale | None
) -> Iterator[pa.Table]:
    """The labels of one shard's rows, in their order, a part of them at a time."""
    stored_ND, first = block.load(), 0
    with pq.ParquetFile(block.metadata) as file:
        for batch in file.iter_batches(max(1, COSINES_AT_ONCE // len(labels)), columns=list(COLUMNS)):
            part_ND = stored_ND[first : first + len(batch)].astype(np.float32)
            yield _labelled(batch, labels, part_ND @ texts_LD.T, scale)
            first += len(batch)


def _labelled(
    batch: pa.RecordBatch, labels: Sequence[str], cosines_NL: np.ndarray, scale: LogitScale | None
) -> pa.Table:
    best_N = cosines_NL.argmax(axis=1)
    columns = {name: batch.column(name) for name in COLUMNS}
    columns["label"] = pa.array([labels[best] for best in best_N], pa.string())
    columns["score"] = pa.array(cosines_NL.max(axis=1), pa.float32())
    probabilities = None if scale is None else scale.best_probability(cosines_NL)
    columns["probability"] = pa.nulls(len(batch), pa.float32()) if probabilities is None else pa.array(probabilities)
    return pa.table(columns).select(LABELS_SCHEMA.names).cast(LABELS_SCHEMA)
