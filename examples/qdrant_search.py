"""Search an output with Qdrant: its files are uploaded as they are, without an export, then searched with a filter.

pip install lora-clip qdrant-client
python examples/qdrant_search.py OUTPUT "a red apple"

This is the client's local mode, for some ten thousand images; a server takes QdrantClient(url="http://localhost:6333").
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from qdrant_client import QdrantClient, models

from lora_clip import open_output

NAME = "images"


def upload(client: QdrantClient, output: Path) -> None:
    """Every row as a point: its shard and its number there are its id, so that a second upload adds no second one."""
    for place, npy in enumerate(sorted((output / "img_emb").glob("*.npy"))):
        vectors_ND, shard = np.load(npy, mmap_mode="r"), int(npy.stem.rpartition("_")[2])
        if place == 0 and not client.collection_exists(NAME):
            size, half = vectors_ND.shape[1], models.Datatype.FLOAT16
            config = models.VectorParams(size=size, distance=models.Distance.COSINE, datatype=half)
            client.create_collection(NAME, vectors_config=config)
        rows = pq.read_table(output / f"metadata/metadata_{shard:06d}.parquet").to_pylist()
        ids = (shard << 32 | number for number in range(len(rows)))
        client.upload_collection(NAME, vectors=vectors_ND.astype(np.float32), payload=rows, ids=ids, wait=True)


def search(client: QdrantClient, output: Path, query: str, at_least: int = 0, count: int = 5) -> list:
    """The points nearest to a text, of images at least so many pixels wide; `score` is the cosine."""
    vector_D = open_output(output).encoder.text([query])[0]
    wide = models.Filter(must=[models.FieldCondition(key="width", range=models.Range(gte=at_least))])
    return client.query_points(NAME, query=vector_D.tolist(), query_filter=wide, limit=count).points


if __name__ == "__main__":
    memory = QdrantClient(":memory:")
    upload(memory, Path(sys.argv[1]))
    for point in search(memory, Path(sys.argv[1]), sys.argv[2]):
        print(f"{point.score:.3f}  {point.payload['key']}  {point.payload['caption']}")
