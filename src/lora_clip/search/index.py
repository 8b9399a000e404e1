"""A FAISS index beside the embeddings: chosen by size, built part by part, bound to the output, grown by what is new.

`index/index.json` is written last and names the file that belongs to it, so an interrupted build leaves what
was there. What an index finds is scored again from the embeddings themselves: its scores are exact.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_clip import extras
from lora_clip.errors import ConfigError, OutputError, StorageError
from lora_clip.io.atomic import make_folder, replaced, storage_error, write_text
from lora_clip.output import provenance
from lora_clip.output.rows import ROWS_AT_ONCE, Block, Rows
from lora_clip.search.exact import NO_ROW, best, nearest

FORMAT = "lora_clip index 1"
FLAT_BELOW, GRAPH_BELOW = 50_000, 2_000_000
"""Rows up to which every one is compared, and up to which a graph over them fits well into memory."""
TRAINING_BYTES = 1 << 30
TRAINING_PER_LIST = 50
CANDIDATES = 4
"""How many times k an index is asked for, of which the best k by their exact scores are taken."""
LEAST_CANDIDATES = 64
SAMPLE, RECALL_AT = 100, 10
TIE = 1e-6


@dataclass(frozen=True)
class IndexRecord:
    """What index.json says: what kind it is, of which output, which rows of each shard it holds, how well it finds.

    `shards` maps a shard's id to its rows, the SHA-256 of their bytes, and that of the file they came from.
    """

    format: str
    fingerprint: str
    factory: str
    file: str
    rows: int
    width: int
    shards: Mapping[str, Mapping[str, Any]]
    recall_at_10: float
    sample: int
    seconds: float


def factory_for(rows: int, width: int) -> str:
    """The FAISS factory string for a collection of a size: exact, a graph, or inverted lists of compressed codes.

    Sources: FAISS wiki, "Guidelines to choose an index"; the lists are 4 to 8 sqrt(rows), rounded to a power of two, so
    that a growing collection is not clustered anew every time.
    """
    if rows < FLAT_BELOW:
        return "Flat"
    if rows < GRAPH_BELOW:
        return "HNSW32_SQ8"
    lists = 2 ** math.ceil(math.log2(4 * math.sqrt(rows)))
    codes = max((part for part in range(1, 65) if width % part == 0 and width // part >= 4), default=1)
    return f"IVF{lists},SQ8" if codes < 16 else f"OPQ{codes},IVF{lists},PQ{codes}x8"


class Index:
    """A loaded index over the rows of an output."""

    def __init__(self, rows: Rows, found: Any, record: IndexRecord) -> None:
        self.rows, self.record = rows, record
        self._faiss = found

    def search(self, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Exact scores (Q, k), highest first, and ids (Q, k) of the rows found; NO_ROW where they are fewer."""
        wanted = min(len(self.rows), max(CANDIDATES * k, LEAST_CANDIDATES))
        widen(self._faiss, self.record.factory, wanted)
        _, ids_QK = self._faiss.search(np.ascontiguousarray(queries_QD, np.float32), wanted)
        scores_QK = np.full(ids_QK.shape, -np.inf, np.float32)
        for line, ids_K in enumerate(ids_QK):
            known_K = ids_K != NO_ROW
            scores_QK[line, known_K] = self.rows.embeddings(ids_K[known_K]) @ queries_QD[line].astype(np.float32)
        return best(scores_QK, ids_QK, k)


def widen(index: Any, factory: str, wanted: int) -> None:
    """Let an approximate index look far enough to find that many."""
    parameters = _faiss().ParameterSpace()
    if "HNSW" in factory.partition(",")[0]:
        parameters.set_index_parameter(index, "efSearch", max(128, 2 * wanted))
    if "IVF" in factory:
        lists = int(factory.partition("IVF")[2].partition(",")[0].partition("_")[0])
        parameters.set_index_parameter(index, "nprobe", max(8, lists // 64))


def _faiss() -> Any:
    """FAISS, which nothing but an index needs. Raises ConfigError where it is not installed."""
    extras.require(extras.SEARCH, "faiss")
    import faiss

    return faiss


# --- Build -------------------------------------------------------------------------------------------------------


def build_index(root: Path, factory: str | None = None) -> tuple[IndexRecord, int]:
    """Bring the index of an output up to date; returns its record and how many rows were added.

    It is built anew where it is of another kind than wanted or where rows that it holds have changed.
    Raises OutputError, StorageError, or ConfigError for a factory string that FAISS does not take.
    """
    extras.require(extras.SEARCH, "faiss")
    started = time.monotonic()
    rows = Rows(root)
    wanted = factory or factory_for(len(rows), rows.width)
    old = read_record(root)
    kept = (
        indexed_prefix(old, rows)
        if old and old.factory == wanted and old.fingerprint == fingerprint_digest(root)
        else None
    )
    if old is not None and kept == {shard: block.rows for shard, block in rows.blocks.items()}:
        return old, 0
    index = _load(root, old) if old is not None and kept is not None else make(wanted, rows)
    before = int(index.ntotal)
    for ids_N, embeddings_ND in rows.stream(kept):
        index.add_with_ids(embeddings_ND, ids_N)
    made = _describe(root, wanted, rows, old if kept else None, kept or {})
    recall = measure_recall(Index(rows, index, made))
    made = IndexRecord(**{**asdict(made), "recall_at_10": recall, "seconds": round(time.monotonic() - started, 2)})
    _save(root, index, made)
    return made, int(index.ntotal) - before


def indexed_prefix(old: IndexRecord, rows: Rows) -> dict[int, int] | None:
    """How many leading rows of each shard an index holds, or None where some of them are not what they were."""
    kept = {int(shard): int(known["rows"]) for shard, known in old.shards.items()}
    if any(shard not in rows.blocks or rows.blocks[shard].rows < count for shard, count in kept.items()):
        return None
    same = (
        old.shards[str(shard)]["file"] == rows.blocks[shard].checksum
        or old.shards[str(shard)]["digest"] == digest(rows.blocks[shard], count)
        for shard, count in kept.items()
    )
    return kept if all(same) else None


def digest(block: Block, count: int) -> str:
    """SHA-256 over the bytes of a shard's first rows."""
    total = hashlib.sha256()
    stored_ND = block.load()
    for first in range(0, count, ROWS_AT_ONCE):
        total.update(np.ascontiguousarray(stored_ND[first : min(count, first + ROWS_AT_ONCE)]).data)
    return total.hexdigest()


def make(factory: str, rows: Rows) -> Any:
    """An empty index that takes ids, trained on a sample where its kind needs that. Raises ConfigError."""
    faiss = _faiss()
    try:
        index: Any = faiss.index_factory(rows.width, factory, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.train(rows.embeddings(rows.sample(training_rows(factory, rows.width))))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"FAISS does not take the factory string {factory!r} for {len(rows):,} rows of width {rows.width}: {reason}"
        ) from error
    if "HNSW" in factory.partition(",")[0]:
        index.hnsw.efConstruction = 100
    return faiss.IndexIDMap(index)


def training_rows(factory: str, width: int) -> int:
    """How many rows a kind of index is trained on: enough for each of its lists, and not more than memory likes."""
    lists = factory.partition("IVF")[2].partition(",")[0].partition("_")[0]
    return min(max(ROWS_AT_ONCE, TRAINING_PER_LIST * int(lists or 0)), TRAINING_BYTES // (4 * width))


def _describe(root: Path, factory: str, rows: Rows, old: IndexRecord | None, kept: Mapping[int, int]) -> IndexRecord:
    """The record of an index over all rows; what did not change is not hashed again."""
    shards = {}
    for shard, block in rows.blocks.items():
        known = old.shards.get(str(shard)) if old else None
        if known is None or kept[shard] != block.rows:
            known = {"rows": block.rows, "digest": digest(block, block.rows), "file": block.checksum}
        shards[str(shard)] = {**known, "file": block.checksum}
    name = hashlib.sha256(json.dumps([factory, shards, time.time()]).encode()).hexdigest()[:16]
    return IndexRecord(
        FORMAT, fingerprint_digest(root), factory, f"{name}.faiss", len(rows), rows.width, shards, 0.0,
        min(SAMPLE, len(rows)), 0.0,
    )  # fmt: skip


def measure_recall(index: Index) -> float:
    """Recall@10 against exact search: of the ten nearest of each of a sample of rows, itself left out, what is found.

    A row that is as near as the tenth counts as found, whichever of several it is.
    """
    sample_N = index.rows.sample(SAMPLE)
    queries_ND = index.rows.embeddings(sample_N)
    k = min(RECALL_AT, len(index.rows) - 1)
    if k == 0:
        return 1.0
    exact_NK, found_NK = (
        without(*search(queries_ND, k + 1), sample_N, k)[0]
        for search in (lambda queries_ND, k: nearest(index.rows, queries_ND, k), index.search)
    )
    return round(float((found_NK >= exact_NK[:, -1:] - TIE).mean()), 4)


def without(scores_QK: np.ndarray, ids_QK: np.ndarray, own_Q: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The first k hits (Q, k) of each query other than the query's own row."""
    order_QK = np.argsort(ids_QK == own_Q[:, None], axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores_QK, order_QK, 1), np.take_along_axis(ids_QK, order_QK, 1)


# --- Disk --------------------------------------------------------------------------------------------------------


def fingerprint_digest(root: Path) -> str:
    """What ties an index to its output: SHA-256 of the output's fingerprint."""
    return hashlib.sha256(json.dumps(provenance.read_fingerprint(root), sort_keys=True).encode()).hexdigest()


def read_record(root: Path) -> IndexRecord | None:
    """What is known of the index of an output; None where there is none, or none that this version can read."""
    try:
        found = IndexRecord(**json.loads((root / "index" / "index.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return found if found.format == FORMAT and (root / "index" / found.file).is_file() else None


def open_index(root: Path, rows: Rows) -> Index | None:
    """The index of an output, or None where there is none, where it does not hold exactly the output's rows, and where
    FAISS is not installed: searching is then slower, and finds as much.
    """
    found = read_record(root)
    if found is None or not extras.installed("faiss") or found.fingerprint != fingerprint_digest(root):
        return None
    current = {str(shard): block.checksum for shard, block in rows.blocks.items()}
    if current != {shard: known["file"] for shard, known in found.shards.items()}:
        return None
    return Index(rows, _load(root, found), found)


def _load(root: Path, found: IndexRecord) -> Any:
    path = root / "index" / found.file
    try:
        return _faiss().read_index(str(path))
    except RuntimeError as error:
        raise OutputError(f"{path} cannot be read; delete {path.parent} and index again") from error


def _save(root: Path, index: Any, made: IndexRecord) -> None:
    """Write the index, then the record that names it, then forget its predecessors."""
    folder = root / "index"
    try:
        make_folder(folder)
        with replaced(folder / made.file) as file:
            _faiss().write_index(index, file.name)
        write_text(folder / "index.json", json.dumps(asdict(made), indent=1) + "\n")
        for path in folder.glob("*.faiss*"):
            if path.name != made.file:
                path.unlink()
    except RuntimeError as error:  # how FAISS says that the disk is full
        raise storage_error(folder, OSError(str(error))) from error
    except OSError as error:
        raise error if isinstance(error, StorageError) else storage_error(folder, error) from error
