"""One pattern as a program, as its user would run it: from the start of Python to the array on disk.

python -m lora_clip.benchmark.program one-at-a-time --base B --adapter A --shards DIR --limit N --output FILE.npy
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from lora_clip.benchmark import loops, peers
from lora_clip.benchmark.photographs import Photograph, list_photographs

Pattern = Callable[[Sequence[Photograph], Path, Path], Iterator[np.ndarray]]
PATTERNS: dict[str, Pattern] = {
    "one-at-a-time": loops.one_at_a_time,
    "batches-one-at-a-time": loops.batches_one_at_a_time,
    "thread-pool": loops.thread_pool,
    "thread-pool-of-batches": loops.thread_pool_of_batches,
    "data-loader": peers.data_loader,
    "sentence-transformers": peers.sentence_transformers,
}


def main() -> None:
    """Embed and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pattern", choices=PATTERNS)
    for name in ("--base", "--adapter", "--shards", "--output"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--limit", type=int, required=True)
    given = parser.parse_args()
    photographs = list_photographs(given.shards, given.limit)
    np.save(given.output, np.concatenate(list(PATTERNS[given.pattern](photographs, given.base, given.adapter))))


if __name__ == "__main__":
    main()
