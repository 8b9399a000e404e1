#!/usr/bin/env python
"""Packs a folder of images into WebDataset shards: python scripts/pack.py IMAGES SHARDS [--shards N] [--workers N]."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from lora_clip.errors import LoraClipError
from lora_clip.pack.pack import pack


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Packs a folder tree of images, with the .txt and .json files beside them, into WebDataset tar "
        "shards. The same command again goes on where an interrupted one stopped."
    )
    parser.add_argument("images_dir", metavar="IMAGES", type=Path, help="folder tree of images")
    parser.add_argument("shards_dir", metavar="SHARDS", type=Path, help="folder for 000000.tar, 000001.tar, …")
    parser.add_argument(
        "--shards", metavar="N", type=int, help="number of tars (default: from size, count and this machine's cores)"
    )
    parser.add_argument("--workers", metavar="N", type=int, help="processes that write (default: one a core)")
    return parser.parse_args(arguments)


def main() -> int:
    """Runs the command and turns every expected failure into one line and an exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        print(pack(**vars(parse())))
    except KeyboardInterrupt:
        print("interrupted: finished shards are kept; the same command goes on from there", file=sys.stderr)
        return 130
    except LoraClipError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
