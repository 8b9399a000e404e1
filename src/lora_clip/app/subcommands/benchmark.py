"""`lora-clip benchmark`.

Without arguments, over a one-layer model and photographs it makes itself; or, for instance:
    lora-clip benchmark --subset 100               the first 100 images only
    lora-clip benchmark --random vit-b-32 --shards /data/shards
    lora-clip benchmark --quick --against HEAD~3   is this checkout slower than that commit? ratios, with intervals
    lora-clip benchmark --gpu                      ten minutes: everything about a GPU, into WORK/gpu.md and gpu.json
    lora-clip benchmark --base BASE --adapter ADAPTER --shards /data/shards --json b.json --chart b.svg

Rates are marginal, from whole processes of two sizes; the collection is read once before, so storage is not measured.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lora_clip.benchmark.models import RANDOM

QUICK_SECONDS = 110.0

if TYPE_CHECKING:
    from lora_clip.benchmark.run import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
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
    parser.add_argument("--only", help="only these patterns, or steps of --gpu, by name, with commas between")
    parser.add_argument(
        "--override", action="append", default=[], help="an override for this job, such as model.dtype=float32"
    )
    parser.add_argument("--large", type=int, help="compare data.decode=exact and fast over so many of 12 megapixels")
    parser.add_argument("--memory", action="store_true", help="peak memory over 3,000 and 15,000 images")
    parser.add_argument("--one-pass", action="store_true", help="three adapters in one pass against one")
    parser.add_argument("--start", action="store_true", help="seconds to the first batch, against the imports alone")
    parser.add_argument("--quick", action="store_true", help="two minutes: compare this checkout with another commit")
    parser.add_argument(
        "--against", metavar="COMMIT", help="that commit (default: where the branch left main, or HEAD~1)"
    )
    parser.add_argument("--gpu", action="store_true", help="measure a GPU, a step after the other; docs/benchmarks.md")
    parser.add_argument("--minutes", type=float, default=10.0, help="with --gpu: how long all steps take together")
    parser.add_argument("--tiny", action="store_true", help="with --gpu: very small sizes, to try it without one")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--chart", type=Path, help="write them there as bars (SVG)")


def run(given: argparse.Namespace) -> int:
    """Measure, print, and save. Raises a LoraClipError."""
    if given.quick:
        from lora_clip.benchmark.quick import quick

        print(quick(given.work, given.random, given.against, QUICK_SECONDS))
        return 0
    if given.gpu:
        return measure_gpu(given)
    from lora_clip.benchmark.run import benchmark
    from lora_clip.benchmark.table import chart, text

    results = benchmark(plan_of(given))
    print(f"\n{results.about}\n\n{text(results.rows)}", *results.notes, sep="\n")
    if given.json:
        given.json.write_text(json.dumps(asdict(results), indent=2) + "\n")
    if given.chart:
        given.chart.write_text(chart(results.rows, f"images per second, {results.model}"))
    return 0


def measure_gpu(given: argparse.Namespace) -> int:
    """Answer what is an estimate about a GPU until then. Raises ConfigError where there is none."""
    from lora_clip.benchmark.gpu.run import benchmark_gpu
    from lora_clip.benchmark.gpu.sizes import Settings
    from lora_clip.benchmark.gpu.steps import choose

    own = {name: str(path) if (path := getattr(given, name)) else None for name in ("base", "adapter")}
    settings = Settings(str(given.work.resolve()), given.tiny, **own)
    print(benchmark_gpu(settings, given.minutes, choose(given.only)))
    print(f"\nwritten: {given.work / 'gpu.md'}, {given.work / 'gpu.json'}, a file each step in {given.work / 'gpu'}")
    return 0


def plan_of(given: argparse.Namespace) -> Plan:
    """What to measure, from the command line."""
    from lora_clip.benchmark.collection import Collection
    from lora_clip.benchmark.run import Plan

    return Plan(
        **{name: getattr(given, name) for name in ("shards", "random", "base", "adapter", "work", "subset", "seconds")},
        collection=Collection(given.images, given.large_share, given.seed),
        workers=given.workers.split(","),
        only=given.only.split(",") if given.only else None,
        **{name: getattr(given, name) for name in ("repeats", "override", "large", "memory", "one_pass", "start")},
    )
