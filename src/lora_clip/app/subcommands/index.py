"""`lora-clip index OUTPUT`.

Only rows that are new are added. Searching works without an index too, by looking at every row.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="the output_dir of a job")
    parser.add_argument("--factory", help="FAISS factory string, such as HNSW32_SQ8 (default: by size)")


def run(given: argparse.Namespace) -> int:
    """Index, and say how well the index finds. Raises a LoraClipError."""
    from lora_clip.search.update import describe, update

    print(describe(*update(given.output.expanduser(), given.factory)))
    return 0
