"""The plot of a sweep as an SVG file: images per second above, memory below, over the points."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

LEFT, RIGHT, TOP, PANEL, GAP = 76, 28, 56, 150, 46
STEP = 112
LINE = 17
LABEL_LETTERS = 15
FLOOR = TOP + 2 * PANEL + GAP
STYLE = """
svg { color-scheme: light dark; font: 13px system-ui, sans-serif; }
.page { fill: #fff; } text { fill: #222; } .faint { fill: #666; } .grid { stroke: #ddd; } .head { font-weight: 600; }
.rate { stroke: #1f5fbf; fill: #1f5fbf; } .memory { stroke: #a8500f; fill: #a8500f; }
polyline, .ring { fill-opacity: 0; } polyline, .ring, .cross { stroke-width: 2; } .cross { stroke: #c0202c; }
@media (prefers-color-scheme: dark) {
  .page { fill: #16181c; } text { fill: #e6e6e6; } .faint { fill: #a2a2a2; } .grid { stroke: #3a3d44; }
  .rate { stroke: #7fb0ff; fill: #7fb0ff; } .memory { stroke: #f0a060; fill: #f0a060; } .cross { stroke: #ff7a80; }
}
"""


class Column(NamedTuple):
    """A point on the x axis: images/s, memory in MiB, `trouble` where it has none, and whether it is the best."""

    label: str
    rate: float | None
    memory: float | None
    trouble: str = ""
    best: bool = False


class Panel(NamedTuple):
    """One of the two drawings: which figure, in which class of the style, from which height down."""

    title: str
    style: str
    top: float
    value: Callable[[Column], float | None]


def plot(columns: Sequence[Column], axis: str, line: bool) -> str:
    """The plot; `axis` says what x is, `line` whether neighbours belong together."""
    width = LEFT + RIGHT + STEP * max(3, len(columns))
    height = FLOOR + 45 + LINE * max(len(_lines(column.label)) for column in columns)
    panels = (
        Panel("images per second", "rate", TOP, lambda column: column.rate),
        Panel("peak memory, MiB", "memory", TOP + PANEL + GAP, lambda column: column.memory),
    )
    body = [part for panel in panels for part in _panel(panel, columns, width, line)]
    body += _labels(columns, axis, width, height)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" aria-labelledby="title desc">\n'
        f'<title id="title">Images per second and peak memory over {html.escape(axis)}</title>\n'
        f'<desc id="desc">{html.escape(described(columns))}</desc>\n<style>{STYLE}</style>\n'
        f'<rect class="page" width="{width}" height="{height}"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def described(columns: Sequence[Column]) -> str:
    """The plot in words, for who does not see it."""
    said = (
        f"{column.label}: {column.trouble}"
        if column.trouble
        else f"{column.label}: {column.rate or 0:,.0f} images per second, {column.memory or 0:,.0f} MiB"
        f"{' (best)' if column.best else ''}"
        for column in columns
    )
    return "; ".join(said)


def _panel(panel: Panel, columns: Sequence[Column], width: float, line: bool) -> Iterator[str]:
    top = nice_ceiling(max((panel.value(column) or 0.0 for column in columns), default=0.0))
    floor = panel.top + PANEL
    yield f'<text class="head" x="{LEFT}" y="{panel.top - 22}">{panel.title}</text>'
    for part in range(5):
        height = floor - PANEL * part / 4
        yield f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{height}" y2="{height}"/>'
        yield f'<text class="faint" x="{LEFT - 8}" y="{height + 4}" text-anchor="end">{top * part / 4:,.6g}</text>'
    values = [panel.value(column) for column in columns]
    heights = [None if value is None else floor - PANEL * value / top for value in values]
    if line:
        path = " ".join(f"{_x(at)},{known:.1f}" for at, known in enumerate(heights) if known is not None)
        yield f'<polyline class="{panel.style}" points="{path}"/>'
    for at, (column, known) in enumerate(zip(columns, heights, strict=True)):
        yield from _mark(panel, column, _x(at), floor if known is None else known)


def _mark(panel: Panel, column: Column, x: float, y: float) -> Iterator[str]:
    """A dot with its value, ringed if it is the best; a cross on the floor for a point without one."""
    value = panel.value(column)
    if value is None:
        yield f'<path class="cross" d="M{x - 6},{y - 6}l12,12m-12,0l12,-12"/>'
        yield f'<text x="{x}" y="{y - 12}" text-anchor="middle">{html.escape(column.trouble)}</text>'
        return
    yield f'<circle class="{panel.style}" cx="{x}" cy="{y:.1f}" r="4"/>'
    if column.best:
        yield f'<circle class="ring {panel.style}" cx="{x}" cy="{y:.1f}" r="8"/>'
    weight = ' class="head"' if column.best else ""
    yield f'<text{weight} x="{x}" y="{y - 12:.1f}" text-anchor="middle">{value:,.0f}</text>'


def _labels(columns: Sequence[Column], axis: str, width: float, height: float) -> Iterator[str]:
    """What stands below: each point's name, whole where a mouse points at it, and what the axis is."""
    for at, column in enumerate(columns):
        weight = ' class="head"' if column.best else ""
        lines = "".join(
            f'<tspan x="{_x(at)}" dy="{LINE if number else 0}">{html.escape(text)}</tspan>'
            for number, text in enumerate(_lines(column.label))
        )
        yield (
            f'<text{weight} x="{_x(at)}" y="{FLOOR + 26}" text-anchor="middle">'
            f"<title>{html.escape(column.label)}</title>{lines}</text>"
        )
    middle = (LEFT + width - RIGHT) / 2
    yield f'<text class="faint" x="{middle}" y="{height - 12}" text-anchor="middle">{html.escape(axis)}</text>'


def _lines(label: str) -> list[str]:
    """A point's name, a line an override, without the group of its key, and short."""
    parts = ("=".join([key.rpartition(".")[2], *value]) for key, *value in (one.split("=") for one in label.split(",")))
    return [part if len(part) <= LABEL_LETTERS else part[: LABEL_LETTERS - 1] + "…" for part in parts]


def _x(at: int) -> float:
    return LEFT + STEP * (at + 0.5)


def nice_ceiling(value: float) -> float:
    """The end of an axis: a number with round quarters, and room for a label above the value."""
    if value <= 0:
        return 1.0
    scale = 10 ** math.floor(math.log10(value))
    return next(factor * scale for factor in (1, 2, 4, 8, 12, 16, 20) if factor * scale >= 1.1 * value)
