"""A Lance dataset: a table of a LanceDB database, each step of an export one of its versions.

Which shards it holds stands in the dataset's own configuration, so it goes wherever a copy of it goes. That is written
after the rows it tells of; where a killed export left rows that it does not tell of, their number says so, and they are
found by reading the column `shard` once.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from lora_clip.export.content import NOTE, Content, check_note
from lora_clip.extras import EXPORT, require
from lora_clip.io.atomic import storage_error

TABLE = "embeddings"
PREFIX = "lora_clip.shard."
ROWS_PER_COMMIT = 1 << 20
"""A commit writes a new manifest, which tells of all that is there: one a shard would be too many of them."""
DOUBTFUL = ""
"""The token of a shard of which the table may hold a part."""


class LanceTable:
    """The table `embeddings` of the LanceDB database `into`; or the dataset itself where that ends in .lance."""

    def __init__(self, content: Content, into: Path, progress: Callable[[int], None]) -> None:
        require(EXPORT, "lance")
        os.environ.setdefault("LANCE_LOG", "error")  # read when it is imported: it warns of every table that is new
        self.path = into if into.suffix == ".lance" else into / f"{TABLE}.lance"
        self.folder = self.path.parent
        self._content, self._progress = content, progress
        self._failure: BaseException | None = None

    def held(self) -> Mapping[int, str]:
        """The token of each shard, from the dataset's configuration, if its rows are there; of others DOUBTFUL."""
        dataset = self._open()
        if dataset is None:
            return {}
        check_note(self.path, (dataset.schema.metadata or {}).get(NOTE), self._content)
        told = _told(dataset)
        if not dataset.schema.equals(self._content.schema):
            return dict.fromkeys(told, DOUBTFUL)
        if sum(rows for _, rows in told.values()) == dataset.count_rows():
            return {number: token for number, (token, _) in told.items()}
        found = _rows_by_shard(dataset)
        return {
            number: told[number][0] if number in told and told[number][1] == found[number] else DOUBTFUL
            for number in told.keys() | found.keys()
        }

    def bring(self, new: Iterable[int], gone: Iterable[int]) -> None:
        """Commit shards, many at a time, each time in place of what is there of them."""
        waiting, gone = list(new), list(gone)
        while waiting or gone:
            some = self._some(waiting)
            try:
                self._commit(some, gone)
            except OSError as error:  # Lance raises it of whatever happens, the end of its reader too
                raise self._failure or storage_error(self.path, error) from error
            waiting, gone = waiting[len(some) :], []

    def opened_by(self) -> str:
        """As LanceDB does."""
        return f'lancedb.connect("{self.folder.absolute()}").open_table("{self.path.stem}")'

    def _some(self, waiting: list[int]) -> list[int]:
        """The first shards of those that wait, as many as make a commit."""
        rows = 0
        for place, number in enumerate(waiting):
            rows += self._content.shards[number].rows
            if rows >= ROWS_PER_COMMIT:
                return waiting[: place + 1]
        return waiting

    def _commit(self, new: list[int], gone: list[int]) -> None:
        """One version in which rows of these shards take the place of older ones, and one that says so."""
        import lance

        dataset = self._open()
        if dataset is not None and not dataset.schema.equals(self._content.schema):
            dataset = None  # captions were embedded since: all is written anew, and readers see the old until then
        fragments = self._write(new, "append" if dataset is not None else "overwrite") if new else []
        operation = self._replacement(dataset, {*new, *gone}, fragments)
        version = None if dataset is None else dataset.version
        after = lance.LanceDataset.commit(str(self.path), operation, read_version=version)
        self._tell(after, new, gone)

    def _replacement(self, dataset: Any, shards: Iterable[int], fragments: list[Any]) -> Any:
        import lance

        if dataset is None:
            return lance.LanceOperation.Overwrite(self._content.schema, fragments)
        removed, updated = _without(dataset, _overlapping(dataset, shards))
        return lance.LanceOperation.Update(
            removed_fragment_ids=removed, updated_fragments=updated, new_fragments=fragments
        )

    def _tell(self, dataset: Any, new: list[int], gone: list[int]) -> None:
        shards, note = self._content.shards, self._content.schema.metadata
        if dataset.schema.metadata != note:  # the model's names are known when the job has come to its end
            dataset.replace_schema_metadata({key.decode(): value.decode() for key, value in note.items()})
        if keys := [key for key in map(_key, gone) if key in dataset.config()]:
            dataset.delete_config_keys(keys)
        if new:
            dataset.update_config({_key(one): json.dumps([shards[one].token, shards[one].rows]) for one in new})

    def _write(self, shards: list[int], mode: str) -> list[Any]:
        """The rows of shards as files of the dataset that no version of it knows yet."""
        from lance.fragment import write_fragments

        schema = self._content.schema
        written = write_fragments(
            pa.RecordBatchReader.from_batches(schema, self._batches(shards)), str(self.path), schema=schema, mode=mode
        )
        return list(written)

    def _batches(self, shards: list[int]) -> Iterator[pa.RecordBatch]:
        try:
            for number in shards:
                for batch in self._content.batches(number):
                    yield batch
                    self._progress(len(batch))
        except BaseException as error:
            self._failure = error  # Lance would tell it as a text with a stack trace
            raise

    def _open(self) -> Any:
        """The dataset, or None where there is none; what a killed first export left is no dataset yet."""
        import lance

        return lance.dataset(str(self.path)) if (self.path / "_versions").is_dir() else None


def _key(number: int) -> str:
    return f"{PREFIX}{number}"


def _told(dataset: Any) -> dict[int, tuple[str, int]]:
    """Token and number of rows of each shard, as the dataset's configuration has them."""
    found = {key.removeprefix(PREFIX): value for key, value in dataset.config().items() if key.startswith(PREFIX)}
    return {int(number): tuple(json.loads(value)) for number, value in found.items()}


def _rows_by_shard(dataset: Any) -> Counter[int]:
    found: Counter[int] = Counter()
    for batch in dataset.to_batches(columns=["shard"]):
        for pair in batch.column("shard").value_counts().to_pylist():
            found[pair["values"]] += pair["counts"]
    return found


def _overlapping(dataset: Any, shards: Iterable[int]) -> set[int]:
    """Those of the shards that have rows in the dataset."""
    told = _told(dataset)
    if sum(rows for _, rows in told.values()) == dataset.count_rows():
        return set(shards) & told.keys()
    return set(shards) & _rows_by_shard(dataset).keys()


def _without(dataset: Any, shards: set[int]) -> tuple[list[int], list[Any]]:
    """Fragments that hold nothing but these shards, and those that do without their rows of them, marked as deleted."""
    removed: list[int] = []
    updated: list[Any] = []
    listed = ", ".join(map(str, sorted(shards)))
    for fragment in dataset.get_fragments() if shards else []:
        if held := fragment.count_rows(filter=f"shard IN ({listed})"):
            left = fragment.delete(f"shard IN ({listed})") if held < fragment.count_rows() else None
            removed += [fragment.fragment_id] if left is None else []
            updated += [left] if left is not None else []
    return removed, updated
