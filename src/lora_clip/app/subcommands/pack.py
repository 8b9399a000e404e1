"""`lora-clip pack IMAGES SHARDS`.

The .txt and .json files beside an image go along. The same command again goes on where an interrupted one stopped.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from lora_clip.app.exits import INTERRUPTED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("images_dir", metavar="IMAGES", type=Path, help="folder tree of images")
    parser.add_argument("shards_dir", metavar="SHARDS", type=Path, help="folder for 000000.tar, 000001.tar, …")
    parser.add_argument(
        "--shards", metavar="N", type=int, help="number of tars (default: from size, count and this machine's cores)"
    )
    parser.add_argument("--workers", metavar="N", type=int, help="processes that write (default: one a core)")


def run(given: argparse.Namespace) -> int:
    """Pack, and say what was done and what to type next. Raises a LoraClipError."""
    from lora_clip.pack.pack import pack

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        print(pack(given.images_dir, given.shards_dir, given.shards, given.workers))
    except KeyboardInterrupt:
        print("interrupted: finished shards are kept; the same command goes on from there", file=sys.stderr)
        return INTERRUPTED
    return 0
