"""Index an output with autofaiss, for clip-retrieval: img_emb/ and metadata/ are the layout that they read.

In an environment of its own, since these want NumPy 1:
pip install 'numpy<2' 'pyarrow<16' autofaiss embedding-reader clip-retrieval
python examples/autofaiss_index.py OUTPUT INDEX
clip-retrieval back --indices_paths=indices.json         # {"images": "INDEX"}

INDEX gets image.index, and metadata/, in which clip-retrieval looks a row up. How far it was tried: docs/export.md
"""

import json
import sys
from pathlib import Path

from autofaiss import build_index
from embedding_reader import EmbeddingReader


def index(output: Path, folder: Path) -> None:
    """An index of all rows, and their metadata beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    build_index(
        str(output / "img_emb"),
        index_path=str(folder / "image.index"),
        index_infos_path=str(folder / "image.json"),
        metric_type="ip",  # of unit vectors: the cosine
        max_index_memory_usage="2G",
        current_memory_available="4G",
    )
    if not (folder / "metadata").exists():
        (folder / "metadata").symlink_to((output / "metadata").absolute())
    Path("indices.json").write_text(json.dumps({"images": str(folder.absolute())}))


def rows(output: Path) -> int:
    """How many rows embedding-reader sees, each with its metadata."""
    columns = ["image_path", "key", "caption"]
    folders = {"embeddings_folder": str(output / "img_emb"), "metadata_folder": str(output / "metadata")}
    reader = EmbeddingReader(**folders, file_format="parquet_npy", meta_columns=columns)
    return sum(len(meta) for _, meta in reader(batch_size=10_000, show_progress=False))


if __name__ == "__main__":
    index(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"{rows(Path(sys.argv[1])):,} rows indexed")
