"""How a run went over time, and where its time went: two sections of report.html."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_clip.report.charts import Chart, Panel, Series, over_time

Line = Mapping[str, float]
CLOCKS = {
    "ranks": {
        "first": "start-up",
        "waiting": "waiting for data",
        "forward": "in the model",
        "blocked": "held up by writing",
    },
    "workers": {"read": "reading", "decode": "decoding and resizing"},
    "writing threads": {"write": "writing"},
}
"""Whose time a stage is part of, and what it is called."""


def read_timelines(root: Path) -> list[list[Line]]:
    """The lines of each rank's timeline, in order; a line that was torn is left out."""
    return [list(_lines(path)) for path in sorted((root / "timeline").glob("rank_*.jsonl"))]


def _lines(path: Path) -> list[Line]:
    found: list[Line] = []
    for text in path.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and {"t", "seconds", "images_per_second"} <= line.keys():
            found.append(line)
    return found


def timeline(ranks: Sequence[Sequence[Line]]) -> Chart | None:
    """Images/s and device use of every rank over time; None for a run too short to be drawn."""
    return draw(ranks) if max((len(lines) for lines in ranks), default=0) >= 2 else None


def draw(ranks: Sequence[Sequence[Line]]) -> Chart:
    """One chart of both figures over one axis of seconds; needs a line at least."""
    start = min(line["t"] - line["seconds"] for lines in ranks for line in lines)
    seconds = max(max(line["t"] for lines in ranks for line in lines) - start, 1e-3)
    images = sum(line.get("images", 0) for lines in ranks for line in lines)
    panels = [
        _panel("images per second", "{:,.6g}", ranks, start, lambda line: line["images_per_second"]),
        _device_panel(ranks, start),
    ]
    return over_time("The run over time", f"{images:,} images in {seconds:,.0f} seconds", panels, seconds)


def _device_panel(ranks: Sequence[Sequence[Line]], start: float) -> Panel:
    """GPU use where it is known, else cores."""
    if any("device_use" in line for lines in ranks for line in lines):
        return _panel("GPU use", "{:.0%}", ranks, start, lambda line: line.get("device_use"))
    return _panel("CPU cores in use", "{:.3g}", ranks, start, lambda line: line.get("cpu"))


def _panel(
    title: str, form: str, ranks: Sequence[Sequence[Line]], start: float, value: Callable[[Line], float | None]
) -> Panel:
    """A line a rank, in which each interval is a level stretch: its figure holds for all of it."""
    series = []
    for rank, lines in enumerate(ranks):
        known = [(line["t"] - start, line["seconds"], y) for line in lines if (y := value(line)) is not None]
        points = [(max(0.0, x), y) for end, long, y in known for x in (end - long, end)]
        series.append(Series(f"rank {rank}", points))
    return Panel(title, form, series)


@dataclass(frozen=True)
class Clock:
    """How processes of one kind spent their time: who they are, the shares of what they did, seconds of all of them."""

    who: str
    shares: Sequence[tuple[str, float]]
    seconds: float


def clocks(run: Mapping[str, Any]) -> list[Clock]:
    """Where the time went, for each kind of process that has time to spend; none for a run that embedded nothing."""
    counts = {"ranks": run["ranks"], "workers": run["ranks"] * run["workers"], "writing threads": run["ranks"]}
    return [
        _clock(kind, counts[kind], run["predict_seconds"] * counts[kind], names, run["stage_seconds"])
        for kind, names in CLOCKS.items()
        if counts[kind] and run["predict_seconds"]
    ]


def _clock(kind: str, count: int, whole: float, names: Mapping[str, str], seconds: Mapping[str, float]) -> Clock:
    whole = max(whole, sum(seconds.get(stage, 0.0) for stage in names))  # workers begin before the run's clock does
    shares = [(name, seconds.get(stage, 0.0) / whole) for stage, name in names.items()]
    return Clock(f"{count} {kind if count > 1 else kind[:-1]}", shares, whole)
