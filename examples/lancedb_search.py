"""Search an output with LanceDB: by a text, among the images that a filter on their metadata lets through.

pip install 'lora-clip[export]' lancedb
lora-clip export OUTPUT --to lance
python examples/lancedb_search.py OUTPUT "a red apple"
"""

import sys
from pathlib import Path

import lancedb
from lancedb.index import IvfPq

from lora_clip import open_output

FEW = 100_000
"""Rows below which an index does not pay."""


def search(output: Path, query: str, at_least: int = 0, count: int = 5) -> list[dict]:
    """The images nearest to a text, of those at least so many pixels wide; `score` is the cosine."""
    table = lancedb.connect(output / "exports/lance").open_table("embeddings")
    if table.count_rows() >= FEW and not table.list_indices():
        table.create_index("embedding", config=IvfPq(distance_type="cosine"))  # approximate from here on
    vector_D = open_output(output).encoder.text([query])[0]
    found = table.search(vector_D, vector_column_name="embedding").distance_type("cosine")
    hits = found.where(f"width >= {at_least}", prefilter=True).limit(count).to_list()
    return [{**hit, "score": 1 - hit["_distance"]} for hit in hits]


if __name__ == "__main__":
    for hit in search(Path(sys.argv[1]), sys.argv[2]):
        print(f"{hit['score']:.3f}  {hit['key']}  {hit['caption']}")
