"""What changed between two outputs over the same images: `python scripts/compare.py A B`; exit status 0 or 2.

For instance A without and B with an adapter: how far the images moved, whose neighbours changed, what captions find.
"""

import argparse
import sys
from pathlib import Path

from lora_clip.compare.measures import cosines, neighbours, recall
from lora_clip.compare.page import figures, page
from lora_clip.compare.pairs import pair
from lora_clip.errors import LoraClipError
from lora_clip.io.atomic import write_text
from lora_clip.search import open_output


def main() -> int:
    """Compare, print the figures, write the page, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("first", metavar="A", type=Path, help="the output_dir of a job")
    parser.add_argument("second", metavar="B", type=Path, help="another one, over the same images")
    parser.add_argument("--output", type=Path, help="the page's file (default: B/compare.html)")
    given = parser.parse_args()
    try:
        print(compare(given.first, given.second, given.output))
    except LoraClipError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def compare(first_root: Path, second_root: Path, output: Path | None) -> str:
    """Write the page; returns what to print."""
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


if __name__ == "__main__":
    sys.exit(main())
