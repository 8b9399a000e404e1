"""A dataset for Hugging Face `datasets`: Parquet files in `data/`, and a card that tells their features and origin."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from lora_clip.export.content import Content
from lora_clip.export.parquet import ParquetFolder
from lora_clip.io.atomic import make_folder, write_text

CARD = "README.md"
SCALARS = {"halffloat": "float16", "float": "float32"}
TEXT = """\
---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
dataset_info:
  features:
{features}
---

# Embeddings of an image collection

Each row is an image with its embedding, of L2 norm 1: the cosine of two images is the dot product of their rows.

```python
from datasets import load_dataset

images = load_dataset("PATH", split="train")
```

Base model: `{base}`. Adapter: `{adapter}`.

What made the embeddings, as `fingerprint.json` of the output has it (SHA-256 of weights and configurations,
preprocessing, dtypes); each Parquet file has it too, in its schema's metadata under `lora_clip`:

```json
{fingerprint}
```
"""


class DatasetFolder(ParquetFolder):
    """A folder that `datasets.load_dataset` reads, and that can be pushed to the hub as it is."""

    def __init__(self, content: Content, into: Path, progress: Callable[[int], None]) -> None:
        super().__init__(content, into, progress)
        self.files = into / "data"

    def bring(self, new: Iterable[int], gone: Iterable[int]) -> None:
        """The same, then the card, where it says something else now."""
        make_folder(self.files)
        super().bring(new, gone)
        path, text = self.folder / CARD, self._card()
        if not path.exists() or path.read_text() != text:
            write_text(path, text)

    def opened_by(self) -> str:
        """In Python."""
        return f'datasets.load_dataset("{self.folder.absolute()}", split="train")'

    def _card(self) -> str:
        model = self._content.model or {}
        return TEXT.format(
            features="\n".join(_features(self._content.schema)),
            base=model.get("base", "not recorded yet"),
            adapter=model.get("adapter") or "none",
            fingerprint=json.dumps(self._content.fingerprint, indent=2),
        )


def _features(schema: pa.Schema) -> Iterator[str]:
    """The columns as `datasets` writes its features in YAML."""
    for field in schema:
        yield f"  - name: {field.name}"
        if pa.types.is_fixed_size_list(field.type):
            yield f"    list: {SCALARS[str(field.type.value_type)]}"
            yield f"    length: {field.type.list_size}"
        else:
            yield f"    dtype: {field.type}"
