"""report.html: what a person looks at first, the page of an output's latest run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lora_clip.diagnose.summary import describe_distance, describe_model, describe_proof, rank_table
from lora_clip.inspection.pictures import Pictures, Small
from lora_clip.inspection.rejects import Reason, collect, seen
from lora_clip.io.atomic import write_text
from lora_clip.output.manifest import read_manifest
from lora_clip.output.provenance import flatten
from lora_clip.output.rows import Rows
from lora_clip.report.charts import Chart
from lora_clip.report.gallery import gallery
from lora_clip.report.map import EmbeddingMap, embedding_map
from lora_clip.report.pages import Thumbnail, render
from lora_clip.report.timeline import Clock, clocks, read_timelines, timeline

SHOWN_ABOVE = ("bottleneck", "by_rank", "images_by_rank")
Lines = Sequence[tuple[str, Any]]


@dataclass(frozen=True)
class RankRow:
    """A rank's cells, and its images as a share of the most that a rank has."""

    cells: Sequence[str]
    share: float


@dataclass(frozen=True)
class Rejected:
    """A reason, how many images were rejected for it, and some of them."""

    text: str
    count: int
    examples: Sequence[Thumbnail]


@dataclass(frozen=True)
class RunPage:
    """What report.html lays out; `map` is None and `neighbours` empty where there is no embedding."""

    title: str
    model: str
    figures: Sequence[tuple[str, str]]
    bottleneck: str
    proof: str
    decoding: str
    over_time: Chart | None
    clocks: Sequence[Clock]
    columns: Sequence[str]
    ranks: Sequence[RankRow]
    map: EmbeddingMap | None
    neighbours: Sequence[Sequence[Thumbnail]]
    rejects: Sequence[Rejected]
    run: Lines
    fingerprint: Lines
    versions: Lines


def write_report(root: Path, small: Small | None = None) -> None:
    """Write the page for the latest run into the output directory, with pictures from the input.

    Reports of several outputs of one input can share `small` pictures, so that each is read and decoded once.
    """
    write_text(root / "report.html", render("report.html", run_page(root, small)))


def run_page(root: Path, small: Small | None = None) -> RunPage:
    """What there is to show of an output."""
    manifest = read_manifest(root)
    assert manifest is not None, "the report follows the manifest"
    run, pictures = manifest["run"], Pictures.of(root, small)
    rows = Rows(root) if manifest["rows"] else None
    return RunPage(
        title=root.resolve().name,
        model=describe_model(manifest),
        figures=_figures(manifest),
        bottleneck=run["bottleneck"],
        proof=_proof(manifest),
        decoding=_decoding(manifest),
        over_time=timeline(read_timelines(root)),
        clocks=clocks(run),
        columns=rank_table(run["by_rank"])[0],
        ranks=_ranks(run["by_rank"]),
        map=embedding_map(rows, pictures) if rows else None,
        neighbours=gallery(rows, pictures) if rows else [],
        rejects=[_rejected(reason, pictures) for reason in collect(root)],
        run=[(key, _told(key, value)) for key, value in flatten(run) if key not in SHOWN_ABOVE],
        fingerprint=list(flatten(manifest["fingerprint"])),
        versions=list(flatten(manifest["versions"])),
    )


def _figures(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures in large type, each with what it is."""
    run = manifest["run"]
    return [
        (f"{manifest['rows']:,}", f"embeddings of width {manifest['width']}"),
        *_captions(manifest),
        (f"{manifest['rejects']:,}", "images rejected"),
        (f"{manifest['shards']:,}", "shard" if manifest["shards"] == 1 else "shards"),
        (f"{run['images_per_second'] or 0:,.0f}", "images/s in the latest run"),
        (f"{(run['waiting_share'] or 0):.0%}", "of the time waiting for data"),
    ]


def _told(key: str, value: Any) -> Any:
    """When a run started as people write it; other figures as they are."""
    return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M:%S} UTC" if key == "started" else value


def _captions(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How many captions were embedded, where they were."""
    if (captions := manifest.get("captions")) is None:
        return []
    return [(f"{captions:,}", f"captions embedded; {manifest['rows'] - captions:,} images have none")]


def _proof(manifest: Mapping[str, Any]) -> str:
    """How close the network that ran comes to float32; empty for an output of an earlier version."""
    proof = manifest.get("proof")
    return f"{manifest['fingerprint']['model_dtype']} on {describe_proof(proof)}" if proof else ""


def _decoding(manifest: Mapping[str, Any]) -> str:
    """How far pixels that the device decoded are from those of the CPU; empty where the CPU decoded."""
    return f"data.decode=gpu on {describe_distance(found)}" if (found := manifest.get("decoding")) else ""


def _ranks(ranks: Sequence[Mapping[str, Any]]) -> list[RankRow]:
    most = max((rank["images"] for rank in ranks), default=0) or 1
    lines = rank_table(ranks)[1:]
    return [RankRow(cells, rank["images"] / most) for cells, rank in zip(lines, ranks, strict=True)]


def _rejected(reason: Reason, pictures: Pictures) -> Rejected:
    examples = (Thumbnail(one["key"] or f"position {one['position']}", seen(one, pictures)) for one in reason.examples)
    return Rejected(reason.text, reason.count, list(examples))
