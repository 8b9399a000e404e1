"""Search an output with SQL: DuckDB reads the exported Parquet files where they lie; there is nothing to load.

pip install lora-clip duckdb
lora-clip export OUTPUT --to parquet
python examples/duckdb_search.py OUTPUT "a red apple"
"""

import sys
from pathlib import Path

import duckdb

from lora_clip import open_output

SQL = """
    SELECT key, caption, width, array_cosine_similarity(embedding::FLOAT[{width}], $query::FLOAT[{width}]) AS score
    FROM read_parquet($files)
    WHERE width >= $at_least
    ORDER BY score DESC
    LIMIT $count
"""


def search(output: Path, query: str, at_least: int = 0, count: int = 5) -> list[tuple]:
    """Key, caption, width and cosine of the images nearest to a text, of those at least so many pixels wide."""
    vector_D = open_output(output).encoder.text([query])[0]
    values = {"query": vector_D.tolist(), "at_least": at_least, "count": count}
    files = str(output / "exports/parquet/*.parquet")
    return duckdb.execute(SQL.format(width=len(vector_D)), {**values, "files": files}).fetchall()


if __name__ == "__main__":
    for key, caption, _, score in search(Path(sys.argv[1]), sys.argv[2]):
        print(f"{score:.3f}  {key}  {caption}")
