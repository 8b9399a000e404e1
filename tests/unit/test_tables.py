"""tables: records become columns of the schema's own types, in their order, with what is missing left empty."""

from __future__ import annotations

from dataclasses import asdict

from lora_clip.output.tables import METADATA_SCHEMA, REJECTS_SCHEMA, reject_table, row_table
from lora_clip.types import ImageRow, Reject

ROWS = [
    ImageRow("/d/ä.jpg", "ä", 3, 2**40, 500, 375, None, None, '{"a": 1}'),
    ImageRow("/d/b.jpg", "b", 3, 2**40 + 1, 1, 2, "", "https://x/y", None),
]


def test_every_field_of_a_row_stands_in_its_column() -> None:
    table = row_table(ROWS)
    assert table.schema == METADATA_SCHEMA and table.to_pylist() == [asdict(row) for row in ROWS]


def test_every_field_of_a_reject_stands_in_its_column() -> None:
    rejects = [Reject(3, 7, "k", "decode", "truncated"), Reject(3, 9, "", "read", "…")]
    table = reject_table(rejects)
    assert table.schema == REJECTS_SCHEMA and table.to_pylist() == [asdict(reject) for reject in rejects]


def test_without_rows_the_columns_are_there() -> None:
    assert row_table([]).schema == METADATA_SCHEMA and not len(row_table([]))
