"""The proof that an output is complete and sound: every image one row or one reject, every row a unit vector."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lora_clip.output.ledger import Piece
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
    pieces = store.pieces()
    for shard, target in targets.items():
        verdict.problems += _check_shard(store, shard, target, pieces.get(shard, []), verdict, checksums)
    verdict.problems += [
        f"shard {shard} is in the ledger, but not in the input" for shard in pieces.keys() - targets.keys()
    ]
    verdict.problems += _strangers(store, pieces)
    return verdict


def _check_shard(
    store: Store, shard: int, target: int, pieces: Sequence[Piece], verdict: Verdict, checksums: bool
) -> Iterator[str]:
    target = max([target, *(piece.stop for piece in pieces if piece.final)])
    verdict.images += target
    if target == 0:
        return
    if not pieces or not pieces[0].final or pieces[0].stop < target:
        held = sum(piece.stop - piece.start for piece in pieces)
        gone = ", ".join(store.missing(shard))
        why = f"{gone} is gone" if gone else "the shard is not finished"
        yield f"shard {shard}: {held} of {target} images are committed, {why}"
        return
    piece = pieces[0]
    verdict.shards += 1
    verdict.rows += piece.rows
    verdict.rejects += piece.rejects
    if checksums and (changed := [kind for kind in piece.checksums if not _checksum_holds(store, piece, kind)]):
        yield f"shard {shard}: {', '.join(changed)} changed since it was written (its SHA-256 differs)"
        return
    try:
        yield from _check_identities(store, piece)
        if piece.rows:
            yield from _check_embeddings(store, piece, verdict)
    except (OSError, ValueError, KeyError, EOFError, pa.ArrowException) as error:
        yield f"shard {shard}: its files cannot be read: {error}"


def _checksum_holds(store: Store, piece: Piece, kind: str) -> bool:
    with store.locate(kind, piece).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == piece.checksums[kind]


def _check_identities(store: Store, piece: Piece) -> Iterator[str]:
    """Rows and rejects together are the positions [0, stop), each once."""
    positions = {kind: _positions(store, piece, kind) for kind in ("metadata", "rejects")}
    for kind, count in (("metadata", piece.rows), ("rejects", piece.rejects)):
        if len(positions[kind]) != count:
            yield f"shard {piece.shard}: {kind} has {len(positions[kind])} rows, the ledger says {count}"
    if (np.diff(positions["metadata"]) <= 0).any():
        yield f"shard {piece.shard}: its rows are not in the order of the input"
    together = np.sort(np.concatenate(list(positions.values())))
    if not np.array_equal(together, np.arange(piece.stop)):
        duplicates = len(together) - len(np.unique(together))
        missing = len(np.setdiff1d(np.arange(piece.stop), together))
        yield f"shard {piece.shard}: {duplicates} images twice, {missing} neither embedded nor rejected"


def _positions(store: Store, piece: Piece, kind: str) -> np.ndarray:
    if kind not in piece.checksums:
        return np.empty(0, np.int64)
    return pq.read_table(store.locate(kind, piece), columns=["position"])["position"].to_numpy()


def _check_embeddings(store: Store, piece: Piece, verdict: Verdict) -> Iterator[str]:
    embeddings_ND = np.load(store.locate("img_emb", piece), mmap_mode="r", allow_pickle=False)
    found = f"{embeddings_ND.shape} {embeddings_ND.dtype}"
    if embeddings_ND.ndim != 2 or embeddings_ND.dtype.str not in LAYOUTS or not embeddings_ND.flags.c_contiguous:
        yield f"shard {piece.shard}: img_emb is {found}, a C-order (n, d) array of float16 or float32 is expected"
        return
    verdict.width = verdict.width or embeddings_ND.shape[-1]
    verdict.dtype = verdict.dtype or embeddings_ND.dtype.name
    wanted = (piece.rows, verdict.width)
    if embeddings_ND.shape != wanted or embeddings_ND.dtype.name != verdict.dtype:
        yield f"shard {piece.shard}: img_emb is {found}, {wanted} {verdict.dtype} is expected"
        return
    bad = sum(_bad_rows(embeddings_ND[at : at + ROWS_AT_ONCE]) for at in range(0, piece.rows, ROWS_AT_ONCE))
    if bad:
        yield f"shard {piece.shard}: {bad} embeddings are not finite vectors of norm 1"


def _bad_rows(embeddings_ND: np.ndarray) -> int:
    norms_N = np.linalg.norm(embeddings_ND.astype(np.float32), axis=1)
    return int((~(np.abs(norms_N - 1) <= NORM_TOLERANCE[embeddings_ND.itemsize])).sum())


def _strangers(store: Store, pieces: Mapping[int, Sequence[Piece]]) -> Iterator[str]:
    """Files that a reader would take for embeddings and that nothing accounts for."""
    known = {
        store.path(kind, piece.shard)
        for found in pieces.values()
        for piece in found
        if piece.final
        for kind in piece.checksums
    }
    for kind in SUFFIXES:
        folder = store.root / kind
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path not in known:
                yield f"{path.relative_to(store.root)} is not accounted for by the ledger"
