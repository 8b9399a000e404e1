"""A run over time and by stage: from the timelines of its ranks to lines, from its seconds to shares."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_clip.report.timeline import clocks, draw, read_timelines, timeline

SVG = "{http://www.w3.org/2000/svg}"
LINES = st.lists(
    st.fixed_dictionaries(
        {"t": st.floats(1e9, 1e9 + 1e5), "seconds": st.floats(0, 60), "images_per_second": st.floats(0, 1e6)},
        optional={"cpu": st.floats(0, 200), "device_use": st.floats(0, 1), "images": st.integers(0, 10**6)},
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=40, deadline=None)
@given(ranks=st.lists(LINES, min_size=1, max_size=12))
def test_every_timeline_is_drawn_well_formed(ranks: list[list[dict[str, float]]]) -> None:
    svg = draw(ranks).document()
    assert len(list(ElementTree.fromstring(svg).iter(f"{SVG}polyline"))) == 2 * len(ranks) and "nan" not in svg


def test_a_torn_timeline_and_a_short_one_are_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "timeline").mkdir()
    (tmp_path / "timeline" / "rank_00000.jsonl").write_text(
        '{"t": 5, "seconds": 1, "images_per_second": 3}\n{"t": 6, "sec'
    )
    found = read_timelines(tmp_path)
    assert len(found[0]) == 1 and timeline(found) is None and timeline([]) is None


def test_the_figure_of_an_interval_holds_for_all_of_it() -> None:
    lines: list[dict[str, float]] = [
        {"t": 101.0, "seconds": 1.0, "images_per_second": 5.0, "cpu": 2.0, "images": 5},
        {"t": 104.0, "seconds": 3.0, "images_per_second": 10.0, "cpu": 1.0, "images": 30},
    ]
    drawn = timeline([lines])
    assert drawn is not None and drawn.described.startswith("35 images in 4 seconds")
    polylines = ElementTree.fromstring(drawn.document()).iter(f"{SVG}polyline")
    rates, cores = (polyline.attrib["points"].split() for polyline in polylines)
    x, y = np.array([[float(value) for value in point.split(",")] for point in rates]).T
    np.testing.assert_allclose(x - x[0], (x[-1] - x[0]) * np.array([0, 0.25, 0.25, 1]), atol=0.1)
    assert y[0] == y[1] > y[2] == y[3] and len(cores) == 4


def test_stages_are_shares_of_the_time_of_those_who_spend_it() -> None:
    seconds = {"first": 1.0, "waiting": 2.0, "forward": 5.0, "blocked": 0.0, "read": 4.0, "decode": 8.0, "write": 1.0}
    ranks, workers, writers = clocks({"predict_seconds": 10.0, "ranks": 1, "workers": 2, "stage_seconds": seconds})
    assert (ranks.who, workers.who, writers.who) == ("1 rank", "2 workers", "1 writing thread")
    assert dict(ranks.shares)["in the model"] == 0.5 and dict(writers.shares)["writing"] == 0.1
    assert dict(workers.shares)["decoding and resizing"] == 0.4 and workers.seconds == 20
    early = clocks({"predict_seconds": 4.0, "ranks": 1, "workers": 2, "stage_seconds": seconds})[1]
    assert sum(share for _, share in early.shares) == 1 and early.seconds == 12  # they had begun before
    assert clocks({"predict_seconds": 0.0, "ranks": 1, "workers": 2, "stage_seconds": {}}) == []
