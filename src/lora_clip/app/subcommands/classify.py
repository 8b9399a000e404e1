"""`lora-clip classify OUTPUT LABELS`.

LABELS is a text file with a label a line; what is embedded is the template with the label in its place. Written for
each row: shard, position, key, image_path, the best label, its score (the cosine of image and text), and its
probability by the temperature that the model was trained with: a softmax over the labels for CLIP, a sigmoid of its own
for SigLIP.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

FILE = "labels.parquet"
TEMPLATE = "a photo of a {}"
MOST_LINES = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("output_dir", metavar="OUTPUT", type=Path, help="the output_dir of a job")
    parser.add_argument("labels", metavar="LABELS", type=Path, help="a text file, a label a line")
    parser.add_argument(
        "--template",
        action="append",
        metavar="TEXT",
        help=f'what is embedded, {{}} being the label (default: "{TEMPLATE}"); given several times: the mean',
    )
    parser.add_argument("--output", type=Path, help=f"the Parquet file (default: OUTPUT/{FILE})")
    parser.add_argument("--base", help="where the base model lies now (default: where it was)")
    parser.add_argument("--adapter", help="where the adapter lies now (default: where it was)")


def run(given: argparse.Namespace) -> int:
    """Label, and print how many images each label got. Raises a LoraClipError."""
    from lora_clip.app.subcommands.embed_text import read_lines
    from lora_clip.search import open_output
    from lora_clip.search.labels import label_rows

    labels = list(dict.fromkeys(line.strip() for line in read_lines(given.labels)))
    collection = open_output(given.output_dir, given.base, given.adapter)
    path = given.output or collection.root / FILE
    counts = label_rows(collection, labels, given.template or [TEMPLATE], path)
    print("\n".join([*table(counts), f"look at:  {path}"]))
    return 0


def table(counts: Counter[str]) -> list[str]:
    """The labels with their images, the most frequent first."""
    from lora_clip.app.subcommands.search import printable
    from lora_clip.terminal import align

    images, chosen = sum(counts.values()), counts.most_common(MOST_LINES)
    lines = [(f"{count:,}", f"{count / images:.1%}", printable(label)) for label, count in chosen]
    more = [f"… and {len(counts) - MOST_LINES:,} labels more"] if len(counts) > MOST_LINES else []
    return [*align([("images", "share", "label"), *lines]), *more, f"{images:,} images, {len(counts):,} labels"]
