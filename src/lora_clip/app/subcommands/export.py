"""`lora-clip export OUTPUT --to lance|parquet|hf`.

A row an image: the vector as a list of fixed size, with the columns of metadata beside it. Only shards that are new, or
not what they were, are written; the same command again writes nothing. A killed export leaves a table that can be read,
and the next one completes it. lance: a table of a LanceDB database; parquet: a file a shard; hf: a folder that
datasets.load_dataset reads.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lora_clip.export.base import TARGETS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="the output_dir of a job")
    parser.add_argument("--to", required=True, choices=TARGETS, help="what to write")
    parser.add_argument("--into", type=Path, metavar="PATH", help="where (default: OUTPUT/exports/ and its kind)")


def run(given: argparse.Namespace) -> int:
    """Export, and say what was done and how it is opened. Raises a LoraClipError."""
    from tqdm import tqdm

    from lora_clip.export.run import default_place, describe, export

    root = given.output.expanduser()
    into = given.into.expanduser() if given.into else default_place(root, given.to)
    with tqdm(unit=" rows", unit_scale=True, delay=2, leave=False, disable=not sys.stderr.isatty()) as bar:
        done = export(root, given.to, into, bar.update)
    print(describe(done))
    return 0
