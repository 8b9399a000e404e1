"""Charts: round axes, well-formed whatever they are given, and the same in words."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_clip.report import charts
from lora_clip.report.charts import Chart, Column, Kind, Length, Panel, Picture, Series

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '</title></svg><script>alert("1")</script>\x00\x1b&amp;'


def every_chart(text: str) -> list[Chart]:
    panels = [Panel(text, "{:g}", [Series(text, [(0, 1), (2, 3)]), Series(text, [])])]
    columns = [Column(text, [1.0, None], text, best=True), Column(text, [None, 2.0])]
    return [
        charts.over_time(text, text, panels, 2.0),
        charts.side_by_side(text, text, [text, text], columns, text, joined=True),
        charts.shares(text, [(text, 0.5, 1.0), ("z", 0.0, 0.1)], [Kind(text, 1), Kind(text, 0)]),
        charts.histogram(text, np.linspace(0, 1, 9)),
        charts.lying_bars(text, text, [Length(text, 1.0, text), Length(text, 0.0, "-", pale=True)]),
        charts.scatter(text, text, np.ones((3, 2)), [Picture(1, 2, 3, text, text)], (9, 9)),
    ]


def drawn(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(chart.document())


@pytest.mark.parametrize("chart", every_chart(HOSTILE), ids=lambda chart: str(len(chart.elements)))
def test_nothing_from_the_data_becomes_markup(chart: Chart) -> None:
    for text in (chart.document(), chart.__html__()):
        root = ElementTree.fromstring(text)
        assert not list(root.iter(f"{SVG}script")) and "<script" not in text
        assert root.findtext(f"{SVG}title") == HOSTILE.replace("\x00", "\ufffd").replace("\x1b", "\ufffd")


@pytest.mark.parametrize("chart", every_chart("a"), ids=lambda chart: str(len(chart.elements)))
def test_every_chart_has_a_name_words_and_colours_for_light_and_dark(chart: Chart) -> None:
    root = drawn(chart)
    assert root.findtext(f"{SVG}title") and root.findtext(f"{SVG}desc") and root.attrib["role"] == "img"
    style = root.findtext(f"{SVG}style") or ""
    assert style.count(".c7") == 2 and "prefers-color-scheme: dark" in style
    assert "var(" not in style, "a viewer that does not know CSS variables would show black bars"
    assert f"{SVG}style" not in {part.tag for part in ElementTree.fromstring(chart.__html__()).iter()}


def test_every_class_that_is_drawn_has_a_style() -> None:
    rules = (charts.WEB / "charts.css").read_text()
    used = {
        name for chart in every_chart("a") for part in drawn(chart).iter() for name in part.get("class", "").split()
    }
    assert used and used <= set(re.findall(r"\.([a-z]\w*)", rules))


@pytest.mark.parametrize(("value", "end"), [(0, 1), (0.9, 1.2), (1, 2), (434, 600), (1186, 2000), (1900, 4000)])
def test_an_axis_ends_on_a_round_number_above_the_values(value: float, end: float) -> None:
    assert charts.nice_ceiling(value) == pytest.approx(end)


@given(st.floats(1e-6, 1e12))
def test_every_axis_has_room_and_wastes_at_most_half(value: float) -> None:
    assert 1.05 * value <= charts.nice_ceiling(value) <= 2.3 * value


@pytest.mark.parametrize(
    ("seconds", "last", "count"),
    [(1.5, "1.4 s", 8), (9, "8 s", 5), (140, "120 s", 5), (400, "6 min", 7), (46_800, "12 h", 7), (1e6, "10 d", 6)],
)
def test_times_are_told_at_round_steps(seconds: float, last: str, count: int) -> None:
    steps = charts.time_steps(seconds)
    assert steps[0][0] == 0 and steps[-1] == (pytest.approx(steps[-1][0]), last) and len(steps) == count


@given(st.floats(1e-3, 1e8))
def test_no_axis_of_time_is_crowded_or_runs_out(seconds: float) -> None:
    steps = charts.time_steps(seconds)
    assert 1 <= len(steps) <= charts.MOST_STEPS + 1 and steps[-1][0] <= seconds
    assert len({told for _, told in steps}) == len(steps)


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=200))
def test_every_value_is_in_a_bin(values: list[float]) -> None:
    first, step, counts = charts.round_bins(np.array(values))
    assert sum(counts) == len(values) and 1 <= len(counts) <= charts.BINS + 2
    assert first * step <= min(values) + 1e-9 and max(values) <= (first + len(counts)) * step + 1e-9
    text = charts.histogram("cosine", np.array(values)).document()
    assert "nan" not in text and len(list(ElementTree.fromstring(text).iter(f"{SVG}rect"))) >= 2


def test_equal_values_are_not_spread() -> None:
    _, step, counts = charts.round_bins(np.array([0.99999] * 5 + [1.00001] * 5))
    assert step * len(counts) >= charts.NARROWEST and sum(count > 0 for count in counts) <= 2


def test_no_two_edges_of_a_narrow_histogram_are_written_alike() -> None:
    drawn = ElementTree.fromstring(charts.histogram("cosine", np.linspace(0.9998, 1, 50)).document())
    edges = [text for one in drawn.iter(f"{SVG}text") if (text := one.text or "").startswith(("0.99", "1.0"))]
    assert len(edges) >= 3 and len(set(edges)) == len(edges)


def test_a_bar_is_as_long_as_its_share() -> None:
    chart = charts.shares("recall", [("a", 0.25, 1.0)], [Kind("first", 1), Kind("second", 0)])
    bars = [part for part in chart.elements if part.tag == "rect" and float(part.attrib["height"]) > 11]
    assert float(bars[1].attrib["height"]) == pytest.approx(4 * float(bars[0].attrib["height"]))
    assert [bar.findtext("title") for bar in bars] == ["a, first: 0.250", "a, second: 1.000"]
    assert chart.described == "a: 0.250 and 1.000"


def test_more_lines_than_colours_are_said_to_be_more() -> None:
    chart = charts.over_time(
        "t", "d", [Panel("p", "{:g}", [Series(f"rank {n}", [(0, n), (1, n)]) for n in range(11)])], 1
    )
    told = [part.text for part in chart.elements if part.tag == "text"]
    assert "rank 7" in told and "rank 8" not in told and "and 3 more, in the same colours" in told
