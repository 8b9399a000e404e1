"""What stands in an output's files: the columns, how they are written, and which embeddings are sound."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lora_clip.output.layout import EMBEDDINGS
from lora_clip.types import ImageRow, Reject

METADATA_SCHEMA = pa.schema(
    [
        ("image_path", pa.string()),
        ("key", pa.string()),
        ("shard", pa.int32()),
        ("position", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("caption", pa.string()),
        ("url", pa.string()),
        ("metadata", pa.string()),
    ]
)
REJECTS_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("position", pa.int64()),
        ("key", pa.string()),
        ("stage", pa.string()),
        ("error", pa.string()),
    ]
)
ROWS_PER_GROUP = 8192
NORM_TOLERANCE = {2: 2e-3, 4: 1e-4}
"""How far a row's L2 norm may be from 1, by bytes per value: about four units in the last place of a float16 row."""


def norms(embeddings_ND: np.ndarray) -> np.ndarray:
    """The L2 norms (N,) float32 of embeddings in their stored dtype."""
    return np.linalg.norm(embeddings_ND.astype(np.float32), axis=1)


def is_unit(norms_N: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Which rows (N,) bool are finite vectors of norm 1, for writer and verification alike."""
    return np.abs(norms_N - 1) <= NORM_TOLERANCE[dtype.itemsize]


def row_table(rows: Sequence[ImageRow]) -> pa.Table:
    """Metadata rows as a table of METADATA_SCHEMA."""
    return _table(rows, METADATA_SCHEMA)


def reject_table(rejects: Sequence[Reject]) -> pa.Table:
    """Rejects as a table of REJECTS_SCHEMA."""
    return _table(rejects, REJECTS_SCHEMA)


def _table(records: Sequence[ImageRow] | Sequence[Reject], schema: pa.Schema) -> pa.Table:
    # column by column: a dict of every row takes six times as long
    columns = [pa.array([getattr(record, field.name) for record in records], field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def write_npy(arrays: Iterable[np.ndarray], shape: tuple[int, ...], dtype: np.dtype, file: BinaryIO) -> None:
    """An .npy file (format 1.0, C order) of arrays laid one after the other."""
    header = {"descr": dtype.newbyteorder("<").str, "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(file, header)
    for array in arrays:
        file.write(np.ascontiguousarray(array, dtype.newbyteorder("<")).data)


def write_table(tables: Iterable[pa.Table], schema: pa.Schema, file: BinaryIO) -> None:
    """A Parquet file of the tables' rows, in row groups of one size, so that its bytes depend on the rows alone."""
    with pq.ParquetWriter(file, schema) as writer:
        for table in _regroup(tables):
            writer.write_table(table.combine_chunks(), row_group_size=ROWS_PER_GROUP)


def _regroup(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        while sum(len(one) for one in waiting) >= ROWS_PER_GROUP:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, ROWS_PER_GROUP)
            waiting = [joined.slice(ROWS_PER_GROUP)]
    if sum(len(one) for one in waiting):
        yield pa.concat_tables(waiting)


def joiner(kind: str, files: Sequence[Path], rows: int) -> Callable[[BinaryIO], None]:
    """What writes one file of a kind from several, in their order, `rows` embeddings in all."""
    if kind in EMBEDDINGS:
        arrays = [np.load(path, mmap_mode="r", allow_pickle=False) for path in files]
        shape, dtype = (rows, arrays[0].shape[1]), arrays[0].dtype
        return lambda file: write_npy(arrays, shape, dtype, file)
    schema = METADATA_SCHEMA if kind == "metadata" else REJECTS_SCHEMA
    return lambda file: write_table((pq.read_table(path, schema=schema) for path in files), schema, file)
