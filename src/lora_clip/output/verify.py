"""The proof that an output is complete and sound: every image one row or one reject, every row a unit vector."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lora_clip.output.ledger import CommittedRange
from lora_clip.output.store import SUFFIXES, Store

NORM_TOLERANCE = {2: 2e-3, 4: 1e-4}
"""How far a row's L2 norm may be from 1, by bytes per value: about four units in the last place of a float16 row."""
LAYOUTS = ("<f2", "<f4")
ROWS_AT_ONCE = 65_536


@dataclass
class Verdict:
    """What verification found: counts over the whole output, and each `problem` in a sentence."""

    images: int = 0
    rows: int = 0
    rejects: int = 0
    shards: int = 0
    width: int | None = None
    dtype: str | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing is missing and nothing is wrong."""
        return not self.problems


def verify(root: Path, targets: Mapping[int, int], checksums: bool = True) -> Verdict:
    """Check the output in `root` against `targets`: how many positions of each input shard it should hold."""
    store = Store(root)
    verdict = Verdict()
    ranges = store.committed()
    for shard, target in targets.items():
        verdict.problems += _check_shard(store, shard, target, ranges.get(shard, []), verdict, checksums)
    verdict.problems += [
        f"shard {shard} is in the ledger, but not in the input" for shard in ranges.keys() - targets.keys()
    ]
    verdict.problems += _unexpected(store, ranges)
    return verdict


def _check_shard(
    store: Store, shard: int, target: int, ranges: Sequence[CommittedRange], verdict: Verdict, checksums: bool
) -> Iterator[str]:
    target = max([target, *(entry.stop for entry in ranges if entry.final)])
    verdict.images += target
    if target == 0:
        return
    if not ranges or not ranges[0].final or ranges[0].stop < target:
        held = sum(entry.stop - entry.start for entry in ranges)
        gone = ", ".join(store.missing(shard))
        why = f"{gone} is gone" if gone else "the shard is not finished"
        yield f"shard {shard}: {held} of {target} images are committed, {why}"
        return
    entry = ranges[0]
    verdict.shards += 1
    verdict.rows += entry.rows
    verdict.rejects += entry.rejects
    if checksums and (changed := [kind for kind in entry.checksums if not _checksum_holds(store, entry, kind)]):
        yield f"shard {shard}: {', '.join(changed)} changed since it was written (its SHA-256 differs)"
        return
    try:
        yield from _check_identities(store, entry)
        if entry.rows:
            yield from _check_embeddings(store, entry, verdict)
    except (OSError, ValueError, KeyError, EOFError, pa.ArrowException) as error:
        yield f"shard {shard}: its files cannot be read: {error}"


def _checksum_holds(store: Store, entry: CommittedRange, kind: str) -> bool:
    with store.locate(kind, entry).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == entry.checksums[kind]


def _check_identities(store: Store, entry: CommittedRange) -> Iterator[str]:
    """Rows and rejects together are the positions [0, stop), each once."""
    positions = {kind: _positions(store, entry, kind) for kind in ("metadata", "rejects")}
    for kind, count in (("metadata", entry.rows), ("rejects", entry.rejects)):
        if len(positions[kind]) != count:
            yield f"shard {entry.shard}: {kind} has {len(positions[kind])} rows, the ledger says {count}"
    if (np.diff(positions["metadata"]) <= 0).any():
        yield f"shard {entry.shard}: its rows are not in the order of the input"
    together = np.sort(np.concatenate(list(positions.values())))
    if not np.array_equal(together, np.arange(entry.stop)):
        duplicates = len(together) - len(np.unique(together))
        missing = len(np.setdiff1d(np.arange(entry.stop), together))
        yield f"shard {entry.shard}: {duplicates} images twice, {missing} neither embedded nor rejected"


def _positions(store: Store, entry: CommittedRange, kind: str) -> np.ndarray:
    if kind not in entry.checksums:
        return np.empty(0, np.int64)
    return pq.read_table(store.locate(kind, entry), columns=["position"])["position"].to_numpy()


def _check_embeddings(store: Store, entry: CommittedRange, verdict: Verdict) -> Iterator[str]:
    embeddings_ND = np.load(store.locate("img_emb", entry), mmap_mode="r", allow_pickle=False)
    found = f"{embeddings_ND.shape} {embeddings_ND.dtype}"
    if embeddings_ND.ndim != 2 or embeddings_ND.dtype.str not in LAYOUTS or not embeddings_ND.flags.c_contiguous:
        yield f"shard {entry.shard}: img_emb is {found}, a C-order (n, d) array of float16 or float32 is expected"
        return
    verdict.width = verdict.width or embeddings_ND.shape[-1]
    verdict.dtype = verdict.dtype or embeddings_ND.dtype.name
    wanted = (entry.rows, verdict.width)
    if embeddings_ND.shape != wanted or embeddings_ND.dtype.name != verdict.dtype:
        yield f"shard {entry.shard}: img_emb is {found}, {wanted} {verdict.dtype} is expected"
        return
    bad = sum(_bad_rows(embeddings_ND[at : at + ROWS_AT_ONCE]) for at in range(0, entry.rows, ROWS_AT_ONCE))
    if bad:
        yield f"shard {entry.shard}: {bad} embeddings are not finite vectors of norm 1"


def _bad_rows(embeddings_ND: np.ndarray) -> int:
    norms_N = np.linalg.norm(embeddings_ND.astype(np.float32), axis=1)
    return int((~(np.abs(norms_N - 1) <= NORM_TOLERANCE[embeddings_ND.itemsize])).sum())


def _unexpected(store: Store, ranges: Mapping[int, Sequence[CommittedRange]]) -> Iterator[str]:
    """Files that a reader would take for embeddings and that nothing accounts for."""
    known = {
        store.path(kind, entry.shard)
        for found in ranges.values()
        for entry in found
        if entry.final
        for kind in entry.checksums
    }
    for kind in SUFFIXES:
        folder = store.root / kind
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path not in known:
                yield f"{path.relative_to(store.root)} is not accounted for by the ledger"
