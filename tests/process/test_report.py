"""report.html: it shows what the output holds, in safety, whatever the output holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers.images import encode, jpeg, photo, write_tar
from helpers.jobs import malformed, new_folder, nursery

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
    assert re.search(r">20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC<", report)
    assert "<b>1</b>shard<" in report
    assert "<h2>Versions" in report and "<h2>Fingerprint" in report and "prefers-color-scheme: dark" in report


def test_of_a_damaged_jpeg_what_is_there_is_shown(report: str) -> None:
    rejected = report.partition("<h2>Rejected")[2].partition("<h2>Run")[0]
    assert rejected.count("data:image/jpeg") == 1 and "<code>cut</code>" in rejected


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
