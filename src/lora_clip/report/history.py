"""How a run went over time, and where its time went: a part of report.html."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lora_clip.report.charts import nice_ceiling

Line = Mapping[str, float]
WIDTH, PANEL, LEFT, TOP, GAP = 900, 150, 64, 30, 52
COLOURS = 8
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


class Panel(NamedTuple):
    """One drawing over time: its title, what is drawn, and how the axis is written."""

    title: str
    value: Callable[[Line], float | None]
    form: str


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


def timeline(ranks: Sequence[Sequence[Line]]) -> str:
    """Images/s and device use of every rank over time, as HTML."""
    heading = "<h2>Over time</h2>"
    if max((len(lines) for lines in ranks), default=0) < 2:
        return f"{heading}<p>The run was too short to be drawn over time: there is a figure a second.</p>"
    panels = (Panel("images per second", lambda line: line["images_per_second"], "{:,.4g}"), _device_panel(ranks))
    return f"{heading}{draw(ranks, panels)}{_legend(len(ranks))}"


def _device_panel(ranks: Sequence[Sequence[Line]]) -> Panel:
    """GPU use where it is known, else cores."""
    if any("device_use" in line for lines in ranks for line in lines):
        return Panel("GPU use", lambda line: line.get("device_use"), "{:.0%}")
    return Panel("CPU cores in use", lambda line: line.get("cpu"), "{:.3g}")


def draw(ranks: Sequence[Sequence[Line]], panels: Sequence[Panel]) -> str:
    """One SVG of all panels over one axis of seconds."""
    start = min(line["t"] - line["seconds"] for lines in ranks for line in lines)
    end = max(max(line["t"] for lines in ranks for line in lines) - start, 1e-3)
    height = TOP + len(panels) * (PANEL + GAP)
    parts = [
        part for at, panel in enumerate(panels) for part in _panel(ranks, panel, TOP + at * (PANEL + GAP), start, end)
    ]
    said = f"{sum(line.get('images', 0) for lines in ranks for line in lines):,} images in {end:,.0f} seconds"
    return (
        f'<svg viewBox="0 0 {WIDTH + 24} {height}" role="img"><title>The run over time</title><desc>{said}</desc>'
        f"{''.join(parts)}</svg>"
    )


def _panel(ranks: Sequence[Sequence[Line]], panel: Panel, top: float, start: float, end: float) -> list[str]:
    known = [value for lines in ranks for line in lines if (value := panel.value(line)) is not None]
    most, floor = nice_ceiling(max(known, default=0.0)), top + PANEL
    parts = [f'<text class="head" x="{LEFT}" y="{top - 10}">{panel.title}</text>']
    for part in range(5):
        y = floor - PANEL * part / 4
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH}" y1="{y}" y2="{y}"/>')
        label = panel.form.format(most * part / 4)
        parts.append(f'<text class="faint" x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{label}</text>')
        x = LEFT + (WIDTH - LEFT) * part / 4
        parts.append(
            f'<text class="faint" x="{x}" y="{floor + 18}" text-anchor="middle">{end * part / 4:,.3g} s</text>'
        )
    for rank, lines in enumerate(ranks):
        points = " ".join(_steps(lines, panel, start, (WIDTH - LEFT) / end, floor, PANEL / most))
        parts.append(f'<polyline class="r{rank % COLOURS}" points="{points}"><title>rank {rank}</title></polyline>')
    return parts


def _steps(lines: Sequence[Line], panel: Panel, start: float, wide: float, floor: float, tall: float) -> list[str]:
    """Each interval as a level stretch: its figure holds for all of it."""
    steps = []
    for line in lines:
        if (value := panel.value(line)) is not None:
            y = floor - tall * value
            edges = (line["t"] - line["seconds"], line["t"])
            steps += [f"{LEFT + wide * max(0.0, edge - start):.1f},{y:.1f}" for edge in edges]
    return steps


def _legend(ranks: int) -> str:
    if ranks < 2:
        return ""
    entries = "".join(f"<li class=r{rank % COLOURS}>rank {rank}</li>" for rank in range(min(ranks, COLOURS)))
    more = f"<li>and {ranks - COLOURS} more, in the same colours</li>" if ranks > COLOURS else ""
    return f"<ul class=legend>{entries}{more}</ul>"


def stages(run: Mapping[str, Any]) -> str:
    """Where the time went, a bar for each kind of process that has time to spend, as HTML."""
    if not run["predict_seconds"]:
        return ""
    clocks = {"ranks": run["ranks"], "workers": run["ranks"] * run["workers"], "writing threads": run["ranks"]}
    rows = "".join(
        _stage_row(clock, clocks[clock], run["predict_seconds"] * clocks[clock], names, run["stage_seconds"])
        for clock, names in CLOCKS.items()
        if clocks[clock]
    )
    return f"<h2>Where the time went</h2><table class=stages>{rows}</table>"


def _stage_row(clock: str, count: int, whole: float, names: Mapping[str, str], seconds: Mapping[str, float]) -> str:
    shares = {name: min(1.0, seconds.get(stage, 0.0) / whole) for stage, name in names.items()}
    bar = "".join(
        f'<span class="r{at}" style="width:{100 * share:.2f}%" title="{name}"></span>'
        for at, (name, share) in enumerate(shares.items())
    )
    told = ", ".join(f"<i class=r{at}></i>{name} {share:.0%}" for at, (name, share) in enumerate(shares.items()))
    who = f"{count} {clock if count > 1 else clock[:-1]}"
    return f"<tr><th scope=row>{who}<td><div class=stack>{bar}</div>{told}, of {whole:,.1f} s"
