"""Ranges as a writer commits them, of made-up rows."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lora_clip.output.sharing import SharedStore
from lora_clip.output.store import Store
from lora_clip.types import ImageRow, Reject, WorkRange

WIDTH = 4


def write(store: Store, work: WorkRange, seed: int = 0) -> None:
    """Commit a range whose first image is a reject, of vectors that the range and `seed` say."""
    if isinstance(store, SharedStore):
        store.share.claim(work.shard, f"{seed}")  # as a worker does before it reads anything
    vectors_ND = np.random.default_rng((seed, *work)).normal(size=(work.stop - work.start - 1, WIDTH))
    vectors_ND = (vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)).astype(np.float32)
    rows = [
        ImageRow(f"{at}.jpg", str(at), work.shard, at, 1, 1, None, None, None)
        for at in range(work.start + 1, work.stop)
    ]
    rejects = [Reject(work.shard, work.start, str(work.start), "decode", "broken")]
    store.write(0, work, False, vectors_ND, rows, rejects)


def made_by_threads(make: Callable[[bytes], bool], number: int) -> Counter[bool]:
    """How often a call to make something succeeds, and fails, where so many threads begin it at the same moment."""
    start, made = threading.Barrier(number), Counter[bool]()

    def begin(mine: int) -> None:
        start.wait()
        made[make(str(mine).encode() * 1000)] += 1

    threads = [threading.Thread(target=begin, args=(mine,)) for mine in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return made


def files_of(root: Path) -> dict[str, bytes]:
    """The contents of an output's finished files, by name."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for kind in ("img_emb", "metadata", "rejects")
        for path in sorted((root / kind).glob("*"))
    }
