"""Build or bring up to date the FAISS index of an output: `python scripts/index.py OUTPUT`; exit status 0 or 2.

Only rows that are new are added. Searching works without an index too, by looking at every row.
"""

import argparse
import sys
from pathlib import Path

from lora_clip.errors import LoraClipError
from lora_clip.search.update import describe, update


def main() -> int:
    """Index, say how well the index finds, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", type=Path, help="the output_dir of a job")
    parser.add_argument("--factory", help="FAISS factory string, such as HNSW32_SQ8 (default: by size)")
    given = parser.parse_args()
    try:
        print(describe(*update(given.output.expanduser(), given.factory)))
    except LoraClipError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
