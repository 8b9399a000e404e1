"""`lora-clip search OUTPUT "a red apple"`.

A query is a text, the path of an image file, or the image_path, URL or file-like key of a row of the output.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_clip.search import Collection, Hit

HITS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("output_dir", metavar="OUTPUT", type=Path, help="the output_dir of a job")
    parser.add_argument(
        "queries", metavar="QUERY", nargs="+", help="a text, an image file, or the path or URL of a row"
    )
    parser.add_argument("--k", type=positive, default=HITS, help=f"hits of each query (default: {HITS})")
    parser.add_argument("--json", action="store_true", help="print JSON; a page is then written only with --output")
    parser.add_argument("--output", type=Path, help="the contact sheet's file (default: OUTPUT/search.html)")
    add_places(parser)


def add_places(parser: argparse.ArgumentParser) -> None:
    """What says where a model lies now that has been moved."""
    parser.add_argument("--base", help="where the base model lies now (default: where it was)")
    parser.add_argument("--adapter", help="where the adapter lies now (default: where it was)")


def positive(text: str) -> int:
    """A number of things."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a number, 1 or more")
    return int(text)


def run(given: argparse.Namespace) -> int:
    """Search, print, and write the page. Raises a LoraClipError."""
    from lora_clip.search import open_output

    collection = open_output(given.output_dir, given.base, given.adapter)
    if line := hint(collection):
        print(f"note: {line}", file=sys.stderr)
    found = [(query, collection.search(query, given.k)) for query in given.queries]
    show(found, given.json)
    if given.output or not given.json:
        write_page(given.output or collection.root / "search.html", collection, found, quiet=given.json)
    return 0


def hint(collection: Collection) -> str:
    """How a large output is searched faster; empty where it is searched fast already."""
    from lora_clip.extras import SEARCH, how_to_install, installed
    from lora_clip.search.index import FLAT_BELOW
    from lora_clip.terminal import command

    if collection.index is not None or len(collection) < FLAT_BELOW:
        return ""
    rows = f"these {len(collection):,} rows, so every one is read"
    if not installed("faiss"):
        return f"no faiss for an index of {rows}: {how_to_install(SEARCH)}"
    return f"no index of {rows}: {command('index', collection.root.absolute())}"


def show(found: list[tuple[str, list[Hit]]], as_json: bool) -> None:
    """Print the hits."""
    if as_json:
        print(
            json.dumps([{"query": query, "hits": [hit.to_json() for hit in hits]} for query, hits in found], indent=1)
        )
        return
    for query, hits in found:
        print(printable(query))
        for rank, hit in enumerate(hits, 1):
            told = (printable(text) for text in (hit.key, place(hit), hit.caption) if text)
            print(f"{rank:4}  {hit.score:6.3f}  {'  '.join(told)}")


def place(hit: Hit) -> str:
    """The file of an image that has one of its own, else its shard."""
    return hit.image_path if Path(hit.shard).is_dir() else hit.shard


def printable(text: str | None) -> str:
    """An untrusted text for a terminal: one line, and no control characters."""
    return "".join(char if char.isprintable() else " " for char in text or "")


def write_page(path: Path, collection: Collection, found: list[tuple[str, list[Hit]]], quiet: bool) -> None:
    """Write the contact sheet."""
    from lora_clip.diagnose.summary import describe_model
    from lora_clip.io.atomic import write_text
    from lora_clip.search.page import contact_sheet

    write_text(path, contact_sheet(collection.root.resolve().name, describe_model(collection.manifest), list(found)))
    if not quiet:
        print(f"look at:  {path}")
