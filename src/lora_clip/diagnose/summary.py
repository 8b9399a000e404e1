"""The lines a person reads: what will be done, and what was done."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from lora_clip.diagnose import figures
from lora_clip.diagnose.bottleneck import diagnose
from lora_clip.inspection import rejects
from lora_clip.io.addresses import is_remote
from lora_clip.loading.plan import Inventory, Plan
from lora_clip.models.adapter_kinds import AdapterSummary
from lora_clip.models.checkpoint import Checkpoint
from lora_clip.models.compute import dtype_name
from lora_clip.models.distance import Distance
from lora_clip.models.proof import ENOUGH, LEAST_CENTRED, Proof, least_cosine
from lora_clip.monitor.meter import Machine
from lora_clip.monitor.progress import Counters, total
from lora_clip.output.manifest import read_manifest
from lora_clip.output.verify import Verdict
from lora_clip.sources.base import count_extensions
from lora_clip.terminal import align, command, count_of, size_of

EXTENSIONS_SHOWN = 4
REASONS_SHOWN = 8
SHOWN = 3
STAGES = ("first", "waiting", "forward", "blocked", "read", "decode", "write")
RANK_COLUMNS = {
    "rank": ("rank", "{}"),
    "images": ("images", "{:,}"),
    "images_per_second": ("images/s", "{:,.1f}"),
    "waiting_share": ("waiting", "{:.0%}"),
    "forward_share": ("in the model", "{:.0%}"),
    "cpu": ("cores", "{:.1f}"),
    "device_use": ("gpu", "{:.0%}"),
    "watts": ("W", "{:.0f}"),
}
"""Columns of the table of ranks: the key in the manifest, the heading, the form."""


@dataclass(frozen=True)
class Settings:
    """How the job is run; `batch_size` is per rank, `workers` are per rank; `texts`: captions are embedded too."""

    ranks: int
    workers: int
    batch_size: int
    decoding: str
    dtype: torch.dtype
    output_dtype: str
    texts: bool = False


@dataclass(frozen=True)
class NamedModel:
    """The model of one output of a run; `name` is empty where it is the only one."""

    name: str
    checkpoint: Checkpoint
    adapter: AdapterSummary | None
    proof: Proof | None = None
    distance: Distance | None = None


def opening(settings: Settings, inventory: Inventory, plan: Plan, outputs: Sequence[NamedModel]) -> str:
    """What will be done, in a line, and one more for each of several outputs; notes that a user may act on."""
    texts = " and their captions" if settings.texts else ""
    what = f"{_of_plan(plan, inventory)}{texts} in {count_of(len(plan.targets), 'shard')}"
    several = [] if len(outputs) == 1 else _outputs_table(outputs, inventory, plan)
    line = (
        f"embedding {what} with {f'{len(outputs)} models' if several else _model(outputs[0])}, "
        f"on {count_of(settings.ranks, 'rank')} x {count_of(settings.workers, 'worker')}, "
        f"batches of {settings.batch_size}, {dtype_name(settings.dtype)}"
    )
    proofs = [told for one in outputs if one.proof for told in proof_lines(one.name, one.proof, settings.dtype)]
    proofs += [distance_line(one.name, one.distance) for one in outputs if one.distance]
    told = (*(one.checkpoint.note for one in outputs), *inventory.notes)
    notes = [f"note: {note}" for note in dict.fromkeys(told) if note]
    return "\n".join([line, *several, *proofs, *notes, *input_notes(inventory)])


def _of_plan(plan: Plan, inventory: Inventory) -> str:
    return _of(plan.images, inventory) if plan.counted else f"some {plan.images:,} images ({size_of(plan.bytes)})"


def proof_lines(name: str, proof: Proof, dtype: torch.dtype) -> list[str]:
    """How close the network that runs comes to float32, in a line, and a warning where that is too far."""
    of = f" of {name}" if name else ""
    lines = [f"proof{of}: {dtype_name(dtype)} on {describe_proof(asdict(proof))}"]
    least = least_cosine(dtype)
    if not (proof.cosine >= least and (proof.centred is None or proof.centred >= LEAST_CENTRED)):  # nor is NaN
        lines.append(
            f"WARNING: cosines of {least} and, centred, {LEAST_CENTRED} are expected: in {dtype_name(dtype)} these "
            f"images' embeddings are not as good as the model's. {_advice(dtype)}"
        )
    return lines


def describe_proof(proof: Mapping[str, Any]) -> str:
    """A proof as the manifest has it, in words."""
    images, centred = count_of(proof["images"], "image"), proof["centred"]
    rest = f" (centred: takes {ENOUGH} different images)" if centred is None else f", centred {centred:.6f}"
    cosine = f"cosine to the {proof['reference']} model in float32 at least {proof['cosine']:.6f}"
    return f"{images} of yours: {cosine}{rest}"


def distance_line(name: str, distance: Distance) -> str:
    """What decoding on the device changes, in a line."""
    of = f" of {name}" if name else ""
    return f"data.decode=gpu{of} on {describe_distance(asdict(distance))}"


def describe_distance(distance: Mapping[str, Any]) -> str:
    """The same as the manifest has it, in words."""
    images, centred = count_of(distance["images"], "image"), distance["centred"]
    rest = f" (centred: takes {ENOUGH} different images)" if centred is None else f", centred {centred:.6f}"
    return (
        f"{images} of yours: pixels {distance['mean']:.2f} of 255 from those of exact, {distance['most']} at most; "
        f"cosine between the embeddings at least {distance['cosine']:.6f}{rest}"
    )


def _advice(dtype: torch.dtype) -> str:
    if dtype == torch.float32:
        return "Please report this"
    nearly = "" if dtype == torch.float16 else ", model.dtype=float16 nearly so"
    return f"model.dtype=float32 computes exactly{nearly}, into another output_dir or with resume=false"


def _of(images: int, inventory: Inventory) -> str:
    return f"{images:,}{f' of {inventory.images:,}' if images < inventory.images else ''} images"


def _outputs_table(outputs: Sequence[NamedModel], inventory: Inventory, plan: Plan) -> list[str]:
    rows = [
        (f"  {one.name}", _model(one), _of(images, inventory) if images else "nothing is missing")
        for one, images in zip(outputs, plan.images_each, strict=True)
    ]
    return align(rows)


def _model(output: NamedModel) -> str:
    checkpoint, adapter = output.checkpoint, output.adapter
    how = f"{shown(checkpoint.adapter)} ({describe_adapter(asdict(adapter))})" if adapter else "no adapter"
    return f"{shown(checkpoint.base)} + {how}"


def input_notes(inventory: Inventory) -> list[str]:
    """What a user may want to know of the input, as far as it is counted: images of several kinds, or left out."""
    taken, left_out = count_extensions(inventory.shards)
    notes = []
    if len(taken) > 1:
        notes.append(
            f"note: images stand under several extensions ({_listed(taken)}); all are embedded: "
            f"data.image_key={taken.most_common(1)[0][0]} takes only those"
        )
    if left_out:
        notes.append(f"note: data.image_key leaves {sum(left_out.values()):,} other images out ({_listed(left_out)})")
    return notes


def announced_note(inventory: Inventory) -> str | None:
    """Where shards hold another number of images than stands beside them; None where none does."""
    refuted = list(islice(inventory.refuted(), SHOWN + 1))
    if not refuted:
        return None
    shown = "; ".join(f"{one.path} holds {one.images:,}, {said:,} were announced" for one, said in refuted[:SHOWN])
    more = "; others too" if len(refuted) > SHOWN else ""
    return f"note: what stands beside shards is not what is in them: {shown}{more}. What is in them counts"


def _listed(counts: Counter[str]) -> str:
    shown = ", ".join(f"{count:,} {name}" for name, count in counts.most_common(EXTENSIONS_SHOWN))
    return shown + (", …" if len(counts) > EXTENSIONS_SHOWN else "")


def run_record(
    settings: Settings, ranks: Sequence[Counters], machine: Machine | None, started: float
) -> dict[str, Any]:
    """The figures of a run, for the manifest: rates in images per second, times in seconds, memory in bytes.

    `waiting_share` is of the time after the first batch; `machine` is None where nothing was left to embed.
    """
    seconds = max((rank.seconds for rank in ranks), default=0.0)
    images, steady = int(total(ranks, "images")), sum(rank.steady for rank in ranks)
    return {
        "started": started,
        "wall_seconds": round(time.time() - started, 3),
        "predict_seconds": round(seconds, 3),
        "startup_seconds": round(max((rank.startup for rank in ranks), default=0.0), 3),
        "images": images,
        "images_per_second": round(images / seconds, 2) if seconds else None,
        "waiting_share": round(total(ranks, "waiting") / steady, 4) if steady else None,
        "stage_seconds": {stage: round(total(ranks, stage), 3) for stage in STAGES},
        "peak_bytes": int(max((rank.peak_bytes for rank in ranks), default=0)),
        "peak_host_bytes": int(max((rank.host_bytes for rank in ranks), default=0)),
        "peak_device_bytes": int(max((rank.device_bytes for rank in ranks), default=0)),
        "ranks": settings.ranks,
        "workers": settings.workers,
        "batch_size": settings.batch_size,
        "decode": settings.decoding,
        "images_by_rank": [int(rank.images) for rank in ranks],
        "by_rank": figures.record(ranks),
        "bottleneck": bottleneck_of(settings, ranks, machine),
    }


def bottleneck_of(settings: Settings, ranks: Sequence[Counters], machine: Machine | None) -> str:
    """The bottleneck of the run; empty where there was none."""
    if machine is None:
        return ""
    how = (dtype_name(settings.dtype), settings.workers, settings.batch_size, settings.decoding)
    return diagnose(figures.gather(ranks, machine, *how))


def closing(root: Path, plan: Plan, verdict: Verdict, place: str | None = None) -> str:
    """What was done, and what to type next."""
    manifest = read_manifest(root) or {}
    lines = ["nothing is missing"] if plan.images == 0 else _of_run(manifest.get("run") or {})
    lines.append(f"verified: {counts(verdict)}{unread(verdict)}")
    lines += [f"  {reason.count:,} rejected: {reason.text}" for reason in rejects.collect(root)[:REASONS_SHOWN]]
    if place is not None and is_remote(place):
        hint = "look at:  copy it to a folder first (aws s3 sync, gcloud storage rsync)"
        return "\n".join([*lines, f"output:   {place}", hint])
    lines += [f"output:   {root}", f"look at:  {root / 'report.html'}"]
    lines += [f"prove:    {command('verify', root.absolute())}"]
    lines += [f"search:   {command('search', root.absolute(), 'a red apple')}"]
    return "\n".join(lines)


def closing_of_several(roots: Sequence[Path], plan: Plan, verdicts: Sequence[Verdict]) -> str:
    """The same for outputs of one pass: what the run was once, then a block for each output."""
    latest = next((root for root, images in zip(roots, plan.images_each, strict=True) if images), roots[0])
    lines = ["nothing is missing"] if plan.images == 0 else _of_run((read_manifest(latest) or {}).get("run") or {})
    for root, verdict in zip(roots, verdicts, strict=True):
        lines += [f"output:   {root}", f"  verified: {counts(verdict)}{unread(verdict)}"]
        lines += [f"  {reason.count:,} rejected: {reason.text}" for reason in rejects.collect(root)[:REASONS_SHOWN]]
        lines.append(f"  look at:  {root / 'report.html'}")
    absolute = [root.absolute() for root in roots]
    lines += [f"prove:    {command('verify', *absolute)}", f"compare:  {command('compare', *absolute)}"]
    return "\n".join([*lines, f"search:   {command('search', absolute[0], 'a red apple')}"])


def _of_run(run: Mapping[str, Any]) -> list[str]:
    """How fast it was, each rank's part of it, and what was the bottleneck."""
    if not run.get("images_per_second"):
        return []
    rate = f"{run['images_per_second']:,.0f} images/s"
    if run["waiting_share"] is not None:
        rate += f", {run['waiting_share']:.0%} of the time waiting for data"
    lines = [f"{run['images']:,} images in {run['wall_seconds']:,.1f} s ({rate})"]
    if len(run["by_rank"]) > 1:
        lines += [f"  {line}" for line in align(rank_table(run["by_rank"]))]
    return lines + ([f"{run['bottleneck']}"] if run["bottleneck"] else [])


def rank_table(ranks: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A row of cells a rank, under a header; columns of which nothing is known are left out."""
    known = [column for column in RANK_COLUMNS if any(rank[column] is not None for rank in ranks)]
    header = tuple(RANK_COLUMNS[column][0] for column in known)
    return [header, *(tuple(_cell(rank[column], RANK_COLUMNS[column][1]) for column in known) for rank in ranks)]


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def unread(verdict: Verdict) -> str:
    """What was not read again for a verdict; empty where all was."""
    if verdict.read == verdict.shards:
        return ""
    return f" ({verdict.read:,} of {count_of(verdict.shards, 'shard')} read again, of the others files and sizes)"


def counts(verdict: Verdict) -> str:
    """What an output holds, as a sum."""
    shape = f" of width {verdict.width}, {verdict.dtype}" if verdict.width else ""
    return (
        f"{verdict.images:,} images in {count_of(verdict.shards, 'shard')} = "
        f"{verdict.rows:,} embeddings{shape} + {count_of(verdict.rejects, 'reject')}"
        f"{_captions(verdict)}"
    )


def _captions(verdict: Verdict) -> str:
    if verdict.captions is None:
        return ""
    return f"; {count_of(verdict.captions, 'caption')} embedded, {verdict.rows - verdict.captions:,} images have none"


def describe_model(manifest: Mapping[str, Any]) -> str:
    """The model of an output, in a line."""
    model = manifest["model"]
    adapter = f"{shown(model['adapter'])} ({describe_adapter(model['lora'])})" if model["lora"] else "no adapter"
    return f"{shown(model['base'])} + {adapter}"


def shown(name: str | Mapping[str, float] | None) -> str:
    """A model's name for people: a path below the current folder without the way to it; a sum with its weights."""
    if isinstance(name, Mapping):
        return " + ".join(f"{weight:g} x {shown(one)}" for one, weight in name.items())
    path, here = Path(name or ""), Path.cwd()
    return str(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else str(name)


def describe_adapter(lora: Mapping[str, Any]) -> str:
    """An adapter's kind, rank and reach."""
    rank = f" rank {lora['rank']}" if lora["rank"] else ""  # OFT, IA3 and others have none
    return f"{lora['kind']}{rank}, {lora['layers']} layers"
