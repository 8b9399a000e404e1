"""Charts as SVG: the one place that draws, so that all charts look the same, on pages and in files of their own.

A chart is a tree of elements, never text put together: nothing from the data can become markup. First stands what all
charts are made of (a frame with its axis, bars, lines, points, marks, a legend), then the charts. Lengths are in the
units of the drawing, which are pixels where it is shown at its own size.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from lora_clip.report.pages import WEB

Element = ElementTree.Element
COLOURS = 8
LEFT, RIGHT, TOP, PANEL, GAP, BELOW = 64, 24, 46, 150, 66, 26
"""Room at the left for the figures of an axis, at the right, above the first of some panels; a panel's height, the room
from one to the next, and what names below the last one take."""
LINE = 17
LETTER = 7.5
"""A letter's width at most, as a rule: nobody knows it before a browser has chosen the font."""
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
VARIABLE = re.compile(r"(--[\w-]+): ([^;]+);")


@dataclass(frozen=True)
class Chart:
    """A drawing, with its name and what it shows in words for who does not see it."""

    width: float
    height: float
    title: str
    described: str
    elements: Sequence[Element]

    def __html__(self) -> str:
        """The chart as an element of a page, which has the style; templates take it as markup by this name."""
        return ElementTree.tostring(self._root(), encoding="unicode")

    def document(self) -> str:
        """The chart as a file of its own, with its style and its ground."""
        ground = element("rect", class_="ground", width=self.width, height=self.height)
        root = self._root(element("style", own_style()), ground, width=self.width, height=self.height)
        ElementTree.indent(root, "")
        return ElementTree.tostring(root, encoding="unicode") + "\n"

    def _root(self, *before: Element, **more: float) -> Element:
        words = element("title", self.title), element("desc", self.described)
        named = {"xmlns": "http://www.w3.org/2000/svg", "role": "img", "class_": "chart"}
        box = f"0 0 {self.width:g} {self.height:g}"
        return element("svg", *words, *before, *self.elements, viewBox=box, **named, **more)


def own_style() -> str:
    """The style of a chart that stands alone, its colours written out: not every viewer of SVG knows CSS variables."""
    rules = (WEB / "charts.css").read_text()
    light, dark = (_coloured(rules, colours) for colours in (WEB / "colours.css").read_text().split("@media"))
    return f"\nsvg {{ color-scheme: light dark; }}\n{light}@media (prefers-color-scheme: dark) {{\n{dark}}}\n"


def _coloured(rules: str, colours: str) -> str:
    known = dict(VARIABLE.findall(colours))
    return re.sub(r"var\((--[\w-]+)\)", lambda name: known[name[1]], rules)


# --- What charts are made of ------------------------------------------------------------------------------------------


def element(name: str, *inside: Element | str, **attributes: str | float) -> Element:
    """An element with what is inside it; numbers to a tenth, what XML has no characters for as U+FFFD."""
    known = {_spelt(key): _written(value) for key, value in attributes.items() if value != ""}
    made = ElementTree.Element(name, known)
    for child in inside:
        if isinstance(child, str):
            made.text = NOT_XML.sub("\ufffd", child)
        else:
            made.append(child)
    return made


def _spelt(attribute: str) -> str:
    """SVG's name of an attribute, from what Python lets one write."""
    return attribute.rstrip("_").replace("_", "-")


def _written(value: str | float) -> str:
    return NOT_XML.sub("\ufffd", value) if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")


class Frame(NamedTuple):
    """Where the values from 0 to `most` are drawn: from `left` to `right`, up from `floor` to `top`."""

    left: float
    right: float
    top: float
    floor: float
    most: float

    @property
    def width(self) -> float:
        """From left to right."""
        return self.right - self.left

    def y(self, value: float) -> float:
        """The height at which a value lies."""
        return self.floor - (self.floor - self.top) * value / self.most


def panel_frame(number: int, width: float, values: Iterable[float]) -> Frame:
    """The frame of one of the panels that stand above one another in a drawing of this width."""
    top = TOP + number * (PANEL + GAP)
    return Frame(LEFT, width - RIGHT, top, top + PANEL, nice_ceiling(max(values, default=0.0)))


def axis(frame: Frame, form: str) -> Iterator[Element]:
    """Lines at the quarters of a frame, each with its figure."""
    for quarter in range(5):
        value = frame.most * quarter / 4
        y = frame.y(value)
        yield element("line", class_="grid", x1=frame.left, x2=frame.right, y1=y, y2=y)
        yield label(frame.left - 8, y + 4, form.format(value), "faint", "end")


def label(x: float, y: float, text: str, style: str = "", anchor: str = "middle") -> Element:
    """A line of text."""
    return element("text", text, x=x, y=y, class_=style, text_anchor=anchor)


def rectangle(x: float, y: float, width: float, height: float, style: str, told: str) -> Element:
    """A rectangle that says what it stands for where a mouse points at it."""
    return element("rect", element("title", told), class_=style, x=x, y=y, width=width, height=height)


def bar(frame: Frame, left: float, width: float, value: float, style: str, told: str) -> Element:
    """A bar that stands on the floor of a frame."""
    return rectangle(left, frame.y(value), width, frame.floor - frame.y(value), style, told)


def line(points: Iterable[tuple[float, float]], style: str, told: str) -> Element:
    """A line through points."""
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return element("polyline", element("title", told), class_=style, points=joined)


def point(x: float, y: float, radius: float, style: str) -> Element:
    """A dot, or a ring by its style."""
    return element("circle", class_=style, cx=x, cy=y, r=radius)


def cross(x: float, y: float) -> Element:
    """The mark of a thing that has no value."""
    return element("path", class_="cross", d=f"M{x - 6:.1f},{y - 6:.1f}l12,12m-12,0l12,-12")


def legend(left: float, y: float, names: Iterable[tuple[str, int]]) -> Iterator[Element]:
    """Names in a line, each after the colour that it goes with."""
    for name, colour in names:
        yield rectangle(left, y - 10, 11, 11, f"c{colour}", name)
        shown = shortened(name, 40)
        yield label(left + 17, y, shown, anchor="start")
        left += 34 + LETTER * len(shown)


def shortened(text: str, letters: int) -> str:
    """A text that has at most so many letters."""
    return text if len(text) <= letters else text[: letters - 1] + "…"


def nice_ceiling(value: float) -> float:
    """The end of an axis: a number with round quarters, and room for a label above the value."""
    if value < sys.float_info.min:  # of what is smaller still, ten is no whole number of times its tenth
        return 1.0
    scale = 10 ** math.floor(math.log10(value))
    return next(factor * scale for factor in (1, 2, 4, 6, 8, 12, 16, 20) if factor * scale >= 1.1 * value)


def round_step(least: float) -> float:
    """The smallest of …, 0.5, 1, 2, 5, 10, … that is no smaller than `least`."""
    scale = 10.0 ** math.floor(math.log10(least))
    return next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= least * (1 - 1e-9))


# --- Lines over time -------------------------------------------------------------------------------------------------

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
TIMES = [
    *((step, 1.0, "s") for step in (0.2, 1.0, 2.0, 5.0, 10.0, 30.0)),
    *((step * MINUTE, MINUTE, "min") for step in (1, 2, 5, 10, 30)),
    *((step * HOUR, HOUR, "h") for step in (1, 2, 6, 12)),
]
"""Steps of an axis of time, each in seconds, with the seconds of its unit and the unit's name."""
MOST_STEPS = 8


class Series(NamedTuple):
    """A line: what it is called, and its points in seconds and in the panel's unit."""

    name: str
    points: Sequence[tuple[float, float]]


class Panel(NamedTuple):
    """One of the drawings above one another: its title, how the figures of its axis are written, its lines."""

    title: str
    form: str
    series: Sequence[Series]


def over_time(title: str, described: str, panels: Sequence[Panel], seconds: float, width: float = 924) -> Chart:
    """Panels over one axis of time; lines of one number belong together and have one colour in all panels."""
    names = [series.name for series in panels[0].series]
    height = TOP + len(panels) * (PANEL + GAP) - GAP + BELOW
    elements = [drawn for number, panel in enumerate(panels) for drawn in _lines(number, panel, seconds, width)]
    if len(names) > 1:
        height += LINE + 8
        elements += legend(LEFT, height - 8, [(name, at) for at, name in enumerate(names[:COLOURS])])
    if len(names) > COLOURS:
        more = f"and {len(names) - COLOURS} more, in the same colours"
        elements.append(label(width - RIGHT, height - 8, more, "faint", "end"))
    return Chart(width, height, title, described, elements)


def _lines(number: int, panel: Panel, seconds: float, width: float) -> Iterator[Element]:
    frame = panel_frame(number, width, (y for series in panel.series for _, y in series.points))
    yield label(frame.left, frame.top - 20, panel.title, "head", "start")
    yield from axis(frame, panel.form)
    for at, told in time_steps(seconds):
        yield label(frame.left + frame.width * at / seconds, frame.floor + 18, told, "faint")
    for at, series in enumerate(panel.series):
        placed = ((frame.left + frame.width * x / seconds, frame.y(y)) for x, y in series.points)
        yield line(placed, f"c{at % COLOURS}", series.name)


def time_steps(seconds: float) -> list[tuple[float, str]]:
    """Round times from 0 to `seconds`, each with what it is called."""
    days = DAY * round_step(max(1.0, seconds / DAY / MOST_STEPS)), DAY, "d"
    step, unit, name = next((time for time in TIMES if seconds <= MOST_STEPS * time[0]), days)
    return [(at * step, f"{at * step / unit:g} {name}") for at in range(int(seconds / step) + 1)]


# --- Points side by side ---------------------------------------------------------------------------------------------

STEP = 112
LABEL_LETTERS = 15


class Column(NamedTuple):
    """A place on the x axis: its name, a value a panel, `trouble` where it has none, and whether it is the best."""

    name: str
    values: Sequence[float | None]
    trouble: str = ""
    best: bool = False

    @property
    def lines(self) -> list[str]:
        """The name as it is written below its place: a line for what is between two commas, shortened."""
        return [shortened(line, LABEL_LETTERS) for line in self.name.split(",")]


def side_by_side(
    title: str, described: str, panels: Sequence[str], columns: Sequence[Column], across: str, joined: bool
) -> Chart:
    """A panel for each value of the columns; `across` says what x is, `joined` whether neighbours belong together."""
    width = LEFT + RIGHT + STEP * max(3, len(columns))
    floor = TOP + len(panels) * (PANEL + GAP) - GAP
    height = floor + 45 + LINE * max(len(column.lines) for column in columns)
    elements = [drawn for at, name in enumerate(panels) for drawn in _points(at, name, columns, width, joined)]
    elements += (_column_name(column, _middle(at), floor + BELOW) for at, column in enumerate(columns))
    elements.append(label((LEFT + width - RIGHT) / 2, height - 12, across, "faint"))
    return Chart(width, height, title, described, elements)


def _points(number: int, title: str, columns: Sequence[Column], width: float, joined: bool) -> Iterator[Element]:
    values = [column.values[number] for column in columns]
    frame, style = panel_frame(number, width, (value or 0.0 for value in values)), f"c{number}"
    yield label(frame.left, frame.top - 20, title, "head", "start")
    yield from axis(frame, "{:,.6g}")
    if joined:
        known = ((_middle(at), frame.y(value)) for at, value in enumerate(values) if value is not None)
        yield line(known, style, title)
    for at, (column, value) in enumerate(zip(columns, values, strict=True)):
        yield from _mark(column, value, _middle(at), frame.y(value or 0.0), style)


def _mark(column: Column, value: float | None, x: float, y: float, style: str) -> Iterator[Element]:
    """A dot with its value, ringed if it is the best; a cross on the floor for a column without one."""
    if value is None:
        yield cross(x, y)
        yield label(x, y - 12, column.trouble)
        return
    yield point(x, y, 4, style)
    if column.best:
        yield point(x, y, 8, f"ring {style}")
    yield label(x, y - 12, f"{value:,.0f}", "head" if column.best else "")


def _column_name(column: Column, x: float, y: float) -> Element:
    """A column's name, whole where a mouse points at it."""
    spans = (element("tspan", text, x=x, dy=LINE if at else 0) for at, text in enumerate(column.lines))
    style = "head" if column.best else ""
    return element("text", element("title", column.name), *spans, x=x, y=y, class_=style, text_anchor="middle")


def _middle(column: int) -> float:
    return LEFT + STEP * (column + 0.5)


# --- Bars ------------------------------------------------------------------------------------------------------------

BARS_WIDTH, BARS_HEIGHT = 744, 260
BARE = Frame(LEFT, BARS_WIDTH - RIGHT, 16, BARS_HEIGHT - 44, 1.0)
"""The frame of bars: what they are stands below it, no title above."""
BINS = 40
"""At most."""
NARROWEST = 1e-3
"""The least width of a histogram: below it rounding would look like spread."""
Group = tuple[str, *tuple[float, ...]]
"""A name, and a share for each kind of bar."""


class Kind(NamedTuple):
    """What a bar of a group stands for, and its colour."""

    name: str
    colour: int


ONE_KIND = (Kind("", 0),)


def shares(title: str, groups: Sequence[Group], kinds: Sequence[Kind] = ONE_KIND) -> Chart:
    """A group of bars for each name, of shares from 0 to 1: a bar for each kind."""
    frame = BARE._replace(most=min(1.0, nice_ceiling(max(share for _, *group in groups for share in group))))
    height, wide = BARS_HEIGHT, frame.width / len(groups)
    elements = [*axis(frame, "{:.0%}"), _across(frame, title)]
    for at, (name, *group) in enumerate(groups):
        elements += _group(frame, frame.left + wide * (at + 0.1), wide * 0.8, name, zip(group, kinds, strict=True))
    if len(kinds) > 1:
        height += LINE + 8
        elements += legend(LEFT, height - 8, kinds)
    told = "; ".join(f"{name}: {' and '.join(f'{share:.3f}' for share in group)}" for name, *group in groups)
    return Chart(BARS_WIDTH, height, title, told, elements)


def _group(frame: Frame, left: float, wide: float, name: str, bars: Iterable[tuple[float, Kind]]) -> Iterator[Element]:
    known = list(bars)
    each = wide / len(known)
    for at, (share, kind) in enumerate(known):
        told = f"{name}{f', {kind.name}' if kind.name else ''}: {share:.3f}"
        yield bar(frame, left + at * each, each - 2, share, f"c{kind.colour}", told)
    yield label(left + wide / 2, frame.floor + 18, name)


def histogram(title: str, values_N: np.ndarray) -> Chart:
    """How often which value occurs, in bins that end on round numbers."""
    first, step, counts = round_bins(values_N)
    frame = BARE._replace(most=nice_ceiling(max(counts)))
    wide = frame.width / len(counts)
    decimals = max(0, -math.floor(math.log10(step)))
    edges = [f"{(first + at) * step:.{decimals}f}" for at in range(len(counts) + 1)]
    elements = [*axis(frame, "{:,.6g}"), _across(frame, title)]
    for at, count in enumerate(counts):
        told = f"{edges[at]} to {edges[at + 1]}: {count:,}"
        elements += [bar(frame, frame.left + at * wide, wide - 1, count, "c0", told)] if count else []
    for at in range(-first % 5, len(counts) + 1, 5):
        elements.append(label(frame.left + at * wide, frame.floor + 18, edges[at]))
    return Chart(BARS_WIDTH, BARS_HEIGHT, title, f"median {np.median(values_N):.3f}, of {len(values_N):,}", elements)


def round_bins(values_N: np.ndarray) -> tuple[int, float, list[int]]:
    """Where bins begin, in steps; the step, a round number; how many values each of them holds."""
    low, high = float(values_N.min()), float(values_N.max())
    middle, half = (low + high) / 2, max(high - low, NARROWEST) / 2
    step = round_step(2 * half / BINS)
    first, end = math.floor((middle - half) / step), math.ceil((middle + half) / step)
    edges = np.arange(first, end + 1) * step
    counts, _ = np.histogram(np.clip(values_N, edges[0], edges[-1]), edges)
    return first, step, counts.tolist()


def _across(frame: Frame, title: str) -> Element:
    return label((frame.left + frame.right) / 2, BARS_HEIGHT - 6, title, "faint")


class Length(NamedTuple):
    """A bar that lies: its name, its value and how that is written, and whether it is pale."""

    name: str
    value: float
    told: str
    pale: bool = False


def lying_bars(title: str, described: str, lengths: Sequence[Length]) -> Chart:
    """A bar below the other, each with its name before and its value behind it."""
    names, longest_bar, row = 380, 420, 26
    most = max(length.value for length in lengths) or 1.0
    elements = [label(14, 26, title, "head", "start")]
    for at, (name, value, told, pale) in enumerate(lengths):
        y, long = TOP + row * at, max(1.0, longest_bar * value / most)
        elements.append(label(names - 10, y + 16, name, anchor="end"))
        elements.append(rectangle(names, y + 4, long, row - 8, "c0 pale" if pale else "c0", f"{name}: {told}"))
        elements.append(label(names + long + 6, y + 16, told, anchor="start"))
    return Chart(names + longest_bar + 110, TOP + row * len(lengths) + 14, title, described, elements)


# --- Points on a plane -----------------------------------------------------------------------------------------------


class Picture(NamedTuple):
    """A picture in a chart: its middle, its longer side, the address of its data, its name."""

    x: float
    y: float
    side: float
    address: str
    name: str


def scatter(
    title: str, described: str, placed_N2: np.ndarray, pictures: Iterable[Picture], size: tuple[float, float]
) -> Chart:
    """Points where they are placed in a drawing of this size, some of them shown as pictures."""
    dots = (point(x, y, 3, "c0 pale") for x, y in placed_N2.tolist())
    return Chart(*size, title, described, [*dots, *map(_image, pictures)])


def _image(picture: Picture) -> Element:
    x, y = (middle - picture.side / 2 for middle in (picture.x, picture.y))
    name = element("title", picture.name)
    return element("image", name, x=x, y=y, width=picture.side, height=picture.side, href=picture.address)
