"""The lines a person reads: what will be done, and what was done."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from lora_clip.data.plan import Inventory, Plan
from lora_clip.data.sources import count_extensions
from lora_clip.model.adapter import AdapterSummary
from lora_clip.model.checkpoint import Checkpoint
from lora_clip.observe.monitor import Counters
from lora_clip.output.manifest import read_manifest
from lora_clip.output.verify import Verdict

EXTENSIONS_SHOWN = 4
REASONS_SHOWN = 8


@dataclass(frozen=True)
class Settings:
    """How the job is run; `batch_size` is per rank, `workers` are per rank."""

    checkpoint: Checkpoint
    root: Path
    ranks: int
    workers: int
    batch_size: int
    dtype: torch.dtype
    output_dtype: str


def opening(settings: Settings, inventory: Inventory, plan: Plan, adapter: AdapterSummary | None) -> str:
    """What will be done, in a line; notes that a user may act on, each in its own."""
    checkpoint = settings.checkpoint
    what = f"{plan.images:,}{f' of {inventory.images:,}' if plan.images < inventory.images else ''} images"
    how = f"{shown(checkpoint.adapter)} ({describe_adapter(asdict(adapter))})" if adapter else "no adapter"
    line = (
        f"embedding {what} in {_plural(len(plan.targets), 'shard')} with {shown(checkpoint.base)} + {how}, "
        f"on {_plural(settings.ranks, 'rank')} x {_plural(settings.workers, 'worker')}, "
        f"batches of {settings.batch_size}, {str(settings.dtype).removeprefix('torch.')}"
    )
    return "\n".join([line, *_notes(checkpoint, inventory)])


def _notes(checkpoint: Checkpoint, inventory: Inventory) -> list[str]:
    taken, left_out = count_extensions(inventory.shards)
    notes = [f"note: {checkpoint.note}"] if checkpoint.note else []
    if len(taken) > 1:
        notes.append(
            f"note: images stand under several extensions ({_listed(taken)}); all are embedded: "
            f"data.image_key={taken.most_common(1)[0][0]} takes only those"
        )
    if left_out:
        notes.append(f"note: data.image_key leaves {sum(left_out.values()):,} other images out ({_listed(left_out)})")
    return notes


def _listed(counts: Counter[str]) -> str:
    shown = ", ".join(f"{count:,} {name}" for name, count in counts.most_common(EXTENSIONS_SHOWN))
    return shown + (", …" if len(counts) > EXTENSIONS_SHOWN else "")


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def run_record(settings: Settings, ranks: Sequence[Counters], started: float) -> dict[str, Any]:
    """The figures of a run, for the manifest: rates in images per second, times in seconds, memory in bytes."""
    seconds = max((rank.seconds for rank in ranks), default=0.0)
    images = int(sum(rank.images for rank in ranks))
    return {
        "started": started,
        "wall_seconds": round(time.time() - started, 3),
        "predict_seconds": round(seconds, 3),
        "images": images,
        "images_per_second": round(images / seconds, 2) if seconds else None,
        "waiting_share": round(sum(r.waiting for r in ranks) / sum(r.seconds for r in ranks), 4) if seconds else None,
        "peak_host_bytes": int(max((rank.host_bytes for rank in ranks), default=0)),
        "peak_device_bytes": int(max((rank.device_bytes for rank in ranks), default=0)),
        "ranks": settings.ranks,
        "workers": settings.workers,
        "batch_size": settings.batch_size,
        "images_by_rank": [int(rank.images) for rank in ranks],
    }


def closing(root: Path, plan: Plan, verdict: Verdict) -> str:
    """What was done, and what to type next."""
    manifest = read_manifest(root) or {}
    lines = []
    if plan.images == 0:
        lines.append("nothing is missing")
    elif (run := manifest.get("run")) and run["images_per_second"]:
        rate = f"{run['images_per_second']:,.0f} images/s, {run['waiting_share']:.0%} of the time waiting for data"
        lines.append(f"{run['images']:,} images in {run['wall_seconds']:,.1f} s ({rate})")
    lines.append(f"verified: {counts(verdict)}")
    lines += [f"  {count:,} rejected: {reason}" for reason, count in reasons(root).most_common(REASONS_SHOWN)]
    lines += [f"output:   {root}", f"look at:  {root / 'report.html'}"]
    lines += [f"prove:    {_python()} scripts/verify.py {root}"]
    return "\n".join(lines)


def _python() -> str:
    """How the user calls this Python: the bare name where that is the one on the PATH."""
    if shutil.which("python") == sys.executable:
        return "python"
    here = Path.cwd()
    return str(Path(sys.executable).relative_to(here)) if Path(sys.executable).is_relative_to(here) else sys.executable


def counts(verdict: Verdict) -> str:
    """What an output holds, as a sum."""
    shape = f" of width {verdict.width}, {verdict.dtype}" if verdict.width else ""
    return (
        f"{verdict.images:,} images in {_plural(verdict.shards, 'shard')} = "
        f"{verdict.rows:,} embeddings{shape} + {_plural(verdict.rejects, 'reject')}"
    )


def reasons(root: Path) -> Counter[str]:
    """How many images were rejected for which reason; figures within a reason are taken together."""
    found: Counter[str] = Counter()
    for path in sorted((root / "rejects").glob("*.parquet")):
        rejects = pq.read_table(path, columns=["stage", "error"]).to_pylist()
        found.update(f"{reject['stage']}: {_general(reject['error'])}" for reject in rejects)
    return found


def _general(error: str) -> str:
    words = ("…" if any(letter.isdigit() for letter in word) else word for word in error.split())
    return " ".join(words)[:100]


def describe_model(manifest: Mapping[str, Any]) -> str:
    """The model of an output, in a line."""
    model = manifest["model"]
    adapter = f"{shown(model['adapter'])} ({describe_adapter(model['lora'])})" if model["lora"] else "no adapter"
    return f"{shown(model['base'])} + {adapter}"


def shown(name: str | None) -> str:
    """A model's name for people: a path below the current folder without the way to it."""
    path, here = Path(name or ""), Path.cwd()
    return str(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else str(name)


def describe_adapter(lora: Mapping[str, Any]) -> str:
    """An adapter's kind, rank and reach."""
    return f"{lora['kind']} rank {lora['rank']}, {lora['layers']} layers"
