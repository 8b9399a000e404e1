"""`lora-clip compare A B [C …]`.

Which of them finds best, by the figures of `lora-clip evaluate` on the images that all hold; how far images moved and
whose neighbours changed. For instance an output without and one with an adapter, or one of each checkpoint of a
training. The page has the details of two outputs; of more, those of each beside the first, or of the two that --pair
names.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_clip.app.subcommands.evaluate import add_texts, texts_given

if TYPE_CHECKING:
    from lora_clip.evaluate.texts import Wanted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("outputs", metavar="OUTPUT", nargs="+", type=Path, help="the output_dir of a job, two or more")
    parser.add_argument("--pair", nargs=2, metavar=("A", "B"), type=Path, help="two of them, to be shown in detail")
    add_texts(parser)
    parser.add_argument("--output", type=Path, help="the page's file (default: compare.html in the last OUTPUT)")


def run(given: argparse.Namespace) -> int:
    """Compare, print the figures, and write the page. Raises a LoraClipError."""
    print(compare(given.outputs, given.output, given.pair, texts_given(given)))
    return 0


def compare(roots: Sequence[Path], output: Path | None, pair: Sequence[Path] | None, wanted: Wanted) -> str:
    """Write the page; returns what to print."""
    from lora_clip.compare.measures import measure
    from lora_clip.compare.names import find_pair, name_roots
    from lora_clip.compare.page import page
    from lora_clip.compare.table import lines
    from lora_clip.errors import ConfigError
    from lora_clip.io.atomic import write_text
    from lora_clip.search import open_output

    if len(roots) < 2:
        raise ConfigError(f"{roots[0]} alone: name two outputs or more; `lora-clip evaluate` has the figures of one")
    collections = [open_output(root) for root in roots]
    roots = [collection.root for collection in collections]
    named = find_pair(pair, name_roots(roots), roots) if pair else None
    comparison = measure(collections, wanted)
    path = output or roots[-1] / "compare.html"
    shown = [named] if named else [(0, place) for place in range(1, len(roots))]
    write_text(path, page(comparison, shown))
    return "\n".join([*lines(comparison, shown[0] if len(shown) == 1 else None), f"look at:    {path}"])
