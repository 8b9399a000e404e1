"""`lora-clip evaluate OUTPUT`.

Each text is asked for among all images, and each image for its text: recall@1, 5 and 10, median rank and mean average
precision (mAP), with 95 % intervals. Texts are the captions, or a field of the images' metadata, such as a label:
`--by label --template "a photo of a {}"`. Every cosine is computed, whether there is an index or not; of equal ones the
wrong ones come first.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_clip.app.subcommands.search import add_places, positive

if TYPE_CHECKING:
    from lora_clip.evaluate.texts import Wanted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("output_dir", metavar="OUTPUT", type=Path, help="the output_dir of a job")
    add_texts(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_places(parser)


def add_texts(parser: argparse.ArgumentParser) -> None:
    """What says which texts are asked for; None where it was not said."""
    parser.add_argument("--by", metavar="FIELD", help="a field of an image's .json as its text (default: caption)")
    parser.add_argument("--template", help='what is made of a text, such as "a photo of a {}" (default: {})')
    parser.add_argument("--texts", metavar="N", type=positive, help="texts asked for at most (default: 5000)")


def run(given: argparse.Namespace) -> int:
    """Evaluate, and print the figures. Raises a LoraClipError."""
    from lora_clip.evaluate.run import evaluate, table
    from lora_clip.search import open_output

    found = evaluate(open_output(given.output_dir, given.base, given.adapter), texts_given(given))
    print(json.dumps([figure.to_json() for figure in found], indent=1) if given.json else table(found))
    return 0


def texts_given(given: argparse.Namespace) -> Wanted:
    """What was said about texts."""
    from lora_clip.evaluate.texts import Wanted

    known: dict[str, Any] = {"by": given.by, "template": given.template, "most": given.texts}
    return Wanted(**{name: value for name, value in known.items() if value is not None})
