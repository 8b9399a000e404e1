"""How fast the job is beside the loops people write, and beside what the machine allows; one table, one run.

    python scripts/benchmark.py                            a one-layer model, over photographs it makes itself
    python scripts/benchmark.py --subset 100               the first 100 images only
    python scripts/benchmark.py --random vit-b-32 --shards /data/shards
    python scripts/benchmark.py --base BASE --adapter ADAPTER --shards /data/shards --json b.json --chart b.svg

Rates are marginal, from whole processes of two sizes; the collection is read once before, so storage is not measured.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from lora_clip.benchmark.collection import Collection
from lora_clip.benchmark.models import RANDOM
from lora_clip.benchmark.run import Plan, benchmark
from lora_clip.benchmark.table import chart, text
from lora_clip.errors import LoraClipError


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, help="a folder of tars (default: photographs made in WORK)")
    parser.add_argument("--images", type=int, default=29_104, help="how many photographs to make")
    parser.add_argument("--large-share", type=float, default=0.0, help="the share of them that has 12 megapixels")
    parser.add_argument("--seed", type=int, default=0, help="of the photographs")
    parser.add_argument("--random", choices=RANDOM, default="one-layer", help="a model with random weights")
    parser.add_argument("--base", type=Path, help="a CLIP model on disk, instead of a random one")
    parser.add_argument("--adapter", type=Path, help="the LoRA adapter on it")
    parser.add_argument("--work", type=Path, default=Path("benchmark"), help="where what is made is kept")
    parser.add_argument("--workers", default="0,1,2,auto", help="data.num_workers of this job, a row each")
    parser.add_argument("--subset", type=int, help="use only the first so many images")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long the larger run takes beyond the smaller")
    parser.add_argument("--repeats", type=int, default=3, help="how often both are run; medians count")
    parser.add_argument("--only", help="only these patterns, by name, with commas between")
    parser.add_argument(
        "--override", action="append", default=[], help="an override for this job, such as model.dtype=float32"
    )
    parser.add_argument("--large", type=int, help="compare data.decode=exact and fast over so many of 12 megapixels")
    parser.add_argument("--memory", action="store_true", help="peak memory over 3,000 and 15,000 images")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--chart", type=Path, help="write them there as bars (SVG)")
    return parser.parse_args()


def main() -> int:
    """Measure, print, save, and return the exit status."""
    given = arguments()
    plan = Plan(
        **{name: getattr(given, name) for name in ("shards", "random", "base", "adapter", "work", "subset", "seconds")},
        collection=Collection(given.images, given.large_share, given.seed),
        workers=given.workers.split(","),
        only=given.only.split(",") if given.only else None,
        **{name: getattr(given, name) for name in ("repeats", "override", "large", "memory")},
    )
    try:
        results = benchmark(plan)
    except LoraClipError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\n{results.about}\n\n{text(results.rows)}", *results.notes, sep="\n")
    if given.json:
        given.json.write_text(json.dumps(asdict(results), indent=2) + "\n")
    if given.chart:
        given.chart.write_text(chart(results.rows, f"images per second, {results.model}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
