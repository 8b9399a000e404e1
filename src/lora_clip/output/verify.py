"""The proof that an output is complete and sound: every image one row or one reject, every row a unit vector."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lora_clip.output.layout import EMBEDDINGS, file_name
from lora_clip.output.ledger import CommittedRange
from lora_clip.output.snapshot import Snapshot
from lora_clip.output.store import Store
from lora_clip.output.tables import is_unit, norms
from lora_clip.types import UNCOUNTED

LAYOUTS = ("<f2", "<f4")
ROWS_AT_ONCE = 65_536
SAMPLE_BYTES = 1 << 28
"""How much is read again at the end of a run: a quarter of a second's reading, of an hour's output a small part."""


@dataclass
class Verdict:
    """What verification found: counts over the whole output, and each `problem` in a sentence.

    `captions` is how many of the rows have an embedded one; None where only images are embedded.
    Of `read` of the shards every byte was read; of the others, whether their files are there with their sizes.
    """

    images: int = 0
    rows: int = 0
    rejects: int = 0
    shards: int = 0
    read: int = 0
    width: int | None = None
    dtype: str | None = None
    captions: int | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing is missing and nothing is wrong."""
        return not self.problems


def verify(
    root: Path, targets: Mapping[int, int], now: Snapshot | None = None, proven: Collection[int] = ()
) -> Verdict:
    """Check the output in `root` against `targets`: how many positions of each input shard it should hold.

    Of the shards in `proven` nothing is read: what the ledger says, and whether their files are there with their
    sizes. `now` is the output as it is, where that is known already.
    """
    now = now or Store(root).snapshot()
    verdict = Verdict(captions=0 if "text_emb" in now.kinds else None)
    for shard, target in targets.items():
        verdict.problems += _check_shard(now, shard, target, verdict, shard in proven)
    verdict.problems += [
        f"shard {shard} is in the ledger, but not in the input" for shard in now.committed.keys() - targets.keys()
    ]
    verdict.problems += _unexpected(now)
    return verdict


def sample(written: Mapping[int, CommittedRange]) -> set[int]:
    """Some of the shards that a run has written, of SAMPLE_BYTES together, or one: to be read again at its end.

    Their checksums are of the bytes that were written: what reading again can find is a disk that did not keep them.
    """
    chosen: set[int] = set()
    left = SAMPLE_BYTES
    for shard in random.sample(sorted(written), len(written)):
        left -= sum(written[shard].sizes.values())
        if chosen and left < 0:
            break
        chosen.add(shard)
    return chosen


def _check_shard(now: Snapshot, shard: int, target: int, verdict: Verdict, proven: bool) -> Iterator[str]:
    ranges, entry = now.committed.get(shard, []), now.finished.get(shard)
    if target == UNCOUNTED:
        yield f"shard {shard}: its images are not counted yet, {sum(one.rows for one in ranges)} are embedded"
        return
    target = max([target, *(one.stop for one in ranges if one.final)])
    verdict.images += target
    if target == 0:
        return
    if entry is None or entry.stop < target:
        yield _unfinished(now, shard, target)
        return
    verdict.shards += 1
    verdict.rows += entry.rows
    verdict.rejects += entry.rejects
    if verdict.captions is not None:
        verdict.captions += entry.captions
    verdict.read += not proven
    try:
        yield from _check_presence(now, entry, verdict) if proven else _check_files(now, entry, verdict)
    except (OSError, ValueError, KeyError, EOFError, pa.ArrowException) as error:
        yield f"shard {shard}: its files cannot be read: {error}"


def _unfinished(now: Snapshot, shard: int, target: int) -> str:
    held = sum(entry.stop - entry.start for entry in now.committed.get(shard, []))
    gone = ", ".join(now.gone(shard))
    why = f"{gone} is gone" if gone else "the shard is not finished"
    return f"shard {shard}: {held} of {target} images are committed, {why}"


def _check_presence(now: Snapshot, entry: CommittedRange, verdict: Verdict) -> Iterator[str]:
    if entry.rows + entry.rejects != entry.stop:
        yield f"shard {entry.shard}: {entry.rows} rows and {entry.rejects} rejects are not its {entry.stop} images"
    if changed := [kind for kind, size in entry.sizes.items() if now.size(kind, entry) != size]:
        yield f"shard {entry.shard}: {', '.join(changed)} changed since it was written (its size differs)"
    elif entry.rows and verdict.width is None:
        # one header of all: what the others hold was compared when they were proven
        embeddings_ND = np.load(now.locate("img_emb", entry), mmap_mode="r", allow_pickle=False)
        verdict.width, verdict.dtype = embeddings_ND.shape[-1], embeddings_ND.dtype.name


def _check_files(now: Snapshot, entry: CommittedRange, verdict: Verdict) -> Iterator[str]:
    if changed := [kind for kind in entry.checksums if not _checksum_holds(now, entry, kind)]:
        yield f"shard {entry.shard}: {', '.join(changed)} changed since it was written (its SHA-256 differs)"
        return
    yield from _check_identities(now, entry)
    for kind in [kind for kind in EMBEDDINGS if kind in now.kinds] if entry.rows else []:
        yield from _check_embeddings(now, entry, verdict, kind)


def _checksum_holds(now: Snapshot, entry: CommittedRange, kind: str) -> bool:
    with now.locate(kind, entry).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == entry.checksums[kind]


def _check_identities(now: Snapshot, entry: CommittedRange) -> Iterator[str]:
    """Rows and rejects together are the positions [0, stop), each once."""
    positions = {kind: _positions(now, entry, kind) for kind in ("metadata", "rejects")}
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


def _positions(now: Snapshot, entry: CommittedRange, kind: str) -> np.ndarray:
    if kind not in entry.checksums:
        return np.empty(0, np.int64)
    return pq.read_table(now.locate(kind, entry), columns=["position"])["position"].to_numpy()


def _check_embeddings(now: Snapshot, entry: CommittedRange, verdict: Verdict, kind: str) -> Iterator[str]:
    if kind not in entry.checksums:
        yield f"shard {entry.shard}: it has no {kind}, where other shards have one"
        return
    embeddings_ND = np.load(now.locate(kind, entry), mmap_mode="r", allow_pickle=False)
    found = f"{embeddings_ND.shape} {embeddings_ND.dtype}"
    if embeddings_ND.ndim != 2 or embeddings_ND.dtype.str not in LAYOUTS or not embeddings_ND.flags.c_contiguous:
        yield f"shard {entry.shard}: {kind} is {found}, a C-order (n, d) array of float16 or float32 is expected"
        return
    verdict.width = verdict.width or embeddings_ND.shape[-1]
    verdict.dtype = verdict.dtype or embeddings_ND.dtype.name
    wanted = (entry.rows, verdict.width)
    if embeddings_ND.shape != wanted or embeddings_ND.dtype.name != verdict.dtype:
        yield f"shard {entry.shard}: {kind} is {found}, {wanted} {verdict.dtype} is expected"
        return
    bad = sum(_bad_rows(embeddings_ND[at : at + ROWS_AT_ONCE]) for at in range(0, entry.rows, ROWS_AT_ONCE))
    if bad:
        of = "" if kind == "img_emb" else f" of {kind}"
        yield f"shard {entry.shard}: {bad} embeddings{of} are not finite vectors of norm 1"


def _bad_rows(embeddings_ND: np.ndarray) -> int:
    return int((~is_unit(norms(embeddings_ND), embeddings_ND.dtype)).sum())


def _unexpected(now: Snapshot) -> Iterator[str]:
    """Files that a reader would take for embeddings and that nothing accounts for."""
    for kind in now.kinds:
        known = {file_name(kind, shard) for shard, entry in now.finished.items() if kind in entry.checksums}
        for name in sorted(now.files[kind].keys() - known):
            yield f"{kind}/{name} is not accounted for by the ledger"
