"""`lora-clip compare A B`.

For instance A without and B with an adapter: how far the images moved, whose neighbours changed, what captions find.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("first", metavar="A", type=Path, help="the output_dir of a job")
    parser.add_argument("second", metavar="B", type=Path, help="another one, over the same images")
    parser.add_argument("--output", type=Path, help="the page's file (default: B/compare.html)")


def run(given: argparse.Namespace) -> int:
    """Compare, print the figures, and write the page. Raises a LoraClipError."""
    print(compare(given.first, given.second, given.output))
    return 0


def compare(first_root: Path, second_root: Path, output: Path | None) -> str:
    """Write the page; returns what to print."""
    from lora_clip.compare.measures import cosines, neighbours, recall
    from lora_clip.compare.page import figures, page
    from lora_clip.compare.pairs import pair
    from lora_clip.io.atomic import write_text
    from lora_clip.search import open_output

    first, second = open_output(first_root), open_output(second_root)
    pairs = pair(first, second)
    measured = (
        len(pairs),
        cosines(first, second, pairs),
        neighbours(first, second, pairs),
        recall(first, second, pairs),
    )
    path = output or second.root / "compare.html"
    write_text(path, page(first, second, *measured))
    return "\n".join([*figures(first, second, *measured), f"look at:    {path}"])
