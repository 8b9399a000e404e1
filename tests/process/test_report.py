"""report.html: it shows what the output holds, in safety, whatever the output holds."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.embeddings import vectors
from helpers.images import encode, jpeg, photo, write_tar
from helpers.jobs import malformed, new_folder, nursery
from lora_clip.report.charts import nice_ceiling
from lora_clip.report.history import Panel, draw, read_timelines, stages, timeline
from lora_clip.report.map import MOST_PICTURES, place, principal_components, spread
from lora_clip.report.rejected import in_part

HOSTILE = "<script>alert(1)<"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a run with two ranks, hostile names, and rejects of all kinds."""
    members = {f"{HOSTILE}{number}.jpg": jpeg(seed=number) for number in range(9)}
    members |= {f"{HOSTILE}{number}.txt": f"{HOSTILE}caption".encode() for number in range(9)}
    members |= {f"{HOSTILE}bad{name}.jpg": data for name, data in malformed().items()}
    members["cut.jpg"] = encode(photo(600, 400), "JPEG")[:20_000]
    tar = write_tar(tmp_path_factory.mktemp("in") / "0.tar", members)
    output = new_folder() / "output"
    nursery().predict("data=shards", f"data.shards={tar}", f"output_dir={output}", ranks=2).expect(0)
    return (output / "report.html").read_text()


def test_all_of_a_run_is_there_and_nothing_runs(report: str) -> None:
    for heading in ("Over time", "Where the time went", "Map of the embeddings", "nearest neighbours", "Rejected"):
        assert heading in report
    assert "<script" not in report and "&lt;script&gt;" in report and "default-src 'none'" in report
    assert "<h2>Versions" in report and "<h2>Fingerprint" in report and "prefers-color-scheme: dark" in report


def test_of_a_damaged_jpeg_what_is_there_is_shown(report: str) -> None:
    rejected = report.partition("<h2>Rejected")[2].partition("<h2>Run")[0]
    assert rejected.count("data:image/jpeg") == 1 and "cut" in rejected


def test_a_run_in_which_all_was_rejected_has_a_report(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "0.tar", {f"{name}.jpg": data for name, data in malformed().items()})
    output = tmp_path / "output"
    nursery().predict(
        "data=shards", f"data.shards={tar}", f"output_dir={output}", "max_reject_fraction=1", "index=true"
    ).expect(0)
    text = (output / "report.html").read_text()
    assert "Rejected" in text and "Map of" not in text


def test_a_single_image_has_a_map(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "0.tar", {"a.jpg": jpeg()})
    nursery().predict("data=shards", f"data.shards={tar}", f"output_dir={tmp_path / 'output'}").expect(0)
    text = (tmp_path / "output" / "report.html").read_text()
    assert "Map of the embeddings" in text and "nan" not in text.partition("<body>")[2].partition("<h2>Run")[
        0
    ].lower().replace("tenan", "")


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", jpeg()[:30], b"%!PS-Adobe\n%%BoundingBox: 0 0 9 9\n", b"\x89PNG" + bytes(50)]
)
def test_bytes_of_which_nothing_is_seen_are_not_shown(data: bytes) -> None:
    assert in_part(data) is None


def test_the_map_is_the_principal_components() -> None:
    embeddings_ND = vectors(200, 12).astype(np.float32)
    points_N2, share = principal_components(embeddings_ND)
    centred_ND = embeddings_ND - embeddings_ND.mean(axis=0)
    left, values, _ = np.linalg.svd(centred_ND, full_matrices=False)
    np.testing.assert_allclose(np.abs(points_N2), np.abs(left[:, :2] * values[:2]), atol=1e-4)
    assert share == pytest.approx(float((values[:2] ** 2).sum() / (values**2).sum()), abs=1e-5)
    np.testing.assert_array_equal(principal_components(embeddings_ND)[0], points_N2)


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 300), width=st.integers(1, 5), seed=st.integers(0, 9), same=st.booleans())
def test_every_map_lies_within_its_drawing(count: int, width: int, seed: int, same: bool) -> None:
    embeddings_ND = vectors(1 if same else count, width, seed).astype(np.float32).repeat(count if same else 1, axis=0)
    points_N2, share = principal_components(embeddings_ND)
    placed_N2 = place(points_N2)
    assert placed_N2.shape == (len(embeddings_ND), 2) and np.isfinite(placed_N2).all() and 0 <= share <= 1 + 1e-6
    assert (placed_N2 >= 0).all() and (placed_N2 <= (960, 640)).all()
    shown = spread(placed_N2)
    assert 1 <= len(shown) <= MOST_PICTURES and len(set(shown.tolist())) == len(shown)


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
    svg = draw(
        ranks,
        [
            Panel("a", lambda line: line["images_per_second"], "{:,.4g}"),
            Panel("b", lambda line: line.get("cpu"), "{:g}"),
        ],
    )
    assert len(list(ElementTree.fromstring(svg).iter("polyline"))) == 2 * len(ranks) and "nan" not in svg


def test_a_torn_timeline_and_a_short_one_are_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "timeline").mkdir()
    (tmp_path / "timeline" / "rank_00000.jsonl").write_text(
        '{"t": 5, "seconds": 1, "images_per_second": 3}\n{"t": 6, "sec'
    )
    found = read_timelines(tmp_path)
    assert len(found[0]) == 1 and "too short" in timeline(found) and "too short" in timeline([])


def test_stages_are_shares_of_the_time_of_those_who_spend_it() -> None:
    seconds = {"first": 1.0, "waiting": 2.0, "forward": 5.0, "blocked": 0.0, "read": 4.0, "decode": 8.0, "write": 1.0}
    text = stages({"predict_seconds": 10.0, "ranks": 1, "workers": 2, "stage_seconds": seconds})
    assert "in the model 50%" in text and "decoding and resizing 40%" in text and "writing 10%" in text
    assert stages({"predict_seconds": 0.0}) == "" and nice_ceiling(0) == 1.0
