"""A sweep's end: the table, the best point and the command that uses it, the plot; whole sweeps are in test_job.py."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from helpers.jobs import uninterrupted
from lora_clip.app import sweep

SVG = "{http://www.w3.org/2000/svg}"


def point(size: int, rate: float | None = None, mebibytes: int = 0, **more: Any) -> sweep.Point:
    name, state = f"data.batch_size={size}", "out of memory" if rate is None else "done"
    typed = (name, "data.limit=500", 'data.shards="/a b/{0..3}.tar"')
    known = {"waiting_share": 0.1, "peak_bytes": mebibytes << 20, "predict_seconds": 60.0} if rate else {}
    values: dict[str, Any] = {"name": name, "batch_size": size, "state": state, "images_per_second": rate}
    return sweep.Point(**(values | {"overrides": typed} | known | more))


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_points_are_named_after_what_differs() -> None:
    points = [["data.batch_size=32", "data.folder=/a/b"], ["data.batch_size=64", "data.folder=/a/b"]]
    assert sweep.name_points(points) == ["data.batch_size=32", "data.batch_size=64"]
    assert sweep.name_points([["data.folder=/a/b"]]) == ["data.folder=_a_b"]


def test_the_table_of_a_sweep_has_a_row_a_point() -> None:
    done = sweep.Point("a", 32, "done", 1234.5, 0.25, 3 << 20)
    lines = sweep.table([done, sweep.Point("b", 64, "out of memory")]).splitlines()
    assert lines[1].split() == ["a", "32", "1,234.5", "25%", "3", "MiB", "done"]
    assert lines[2].split() == ["b", "64", "-", "-", "-", "out", "of", "memory"]


def test_a_point_is_read_from_what_its_job_left() -> None:
    read = sweep.read_point(uninterrupted(), "data.batch_size=64", 64, 0, ["data.batch_size=64"])
    run = json.loads((uninterrupted() / "manifest.json").read_text())["run"]
    assert read.state == "done" and read.images_per_second == run["images_per_second"] > 0
    assert read.peak_bytes == run["peak_host_bytes"] > 1 << 26 and read.bottleneck == run["bottleneck"]


def test_a_point_of_several_adapters_is_read_from_any_of_its_outputs(tmp_path: Path) -> None:
    (tmp_path / "base").symlink_to(uninterrupted())
    assert sweep.read_point(tmp_path, "a", 64, 0) == sweep.read_point(uninterrupted(), "a", 64, 0)


@pytest.mark.parametrize(("status", "state"), [(12, "out of memory"), (-9, "out of memory"), (2, "failed (2)")])
def test_a_point_without_a_result_says_why(status: int, state: str, tmp_path: Path) -> None:
    assert sweep.read_point(tmp_path, "a", 64, status).state == state


def test_the_best_point_is_the_fastest() -> None:
    points = [point(32, 900, 100), point(64, 1200, 200), point(128, 1000, 300), point(256)]
    assert sweep.best_point(points) is points[1]


def test_of_points_as_fast_the_best_needs_least_memory() -> None:
    points = [point(32, 900, 100), point(64, 1190, 200), point(128, 1200, 400)]
    assert sweep.best_point(points) is points[1]


def test_no_point_is_best_where_none_was_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep.finish(tmp_path / "absent", [point(1 << 30)])
    assert sweep.best_point([point(1 << 30)]) is None and "best" not in capsys.readouterr().out


def test_who_reads_the_last_sweep_meanwhile_reads_all_of_it(tmp_path: Path) -> None:
    sweep.finish(tmp_path, [point(32, 900, 100)])
    files = [tmp_path / "sweep.json", tmp_path / "sweep.svg"]
    with files[0].open() as json_file, files[1].open() as svg_file:
        sweep.finish(tmp_path, [point(64, 1200, 200)])
        assert "data.batch_size=32" in json_file.read() and texts(svg_file.read())
    assert "data.batch_size=64" in files[0].read_text() and sorted(tmp_path.iterdir()) == files


def test_the_advice_is_a_command_that_a_shell_reads_back() -> None:
    best, command = sweep.advice(point(64, 1200, 200)).splitlines()
    assert best == "best:     data.batch_size=64, 1,200.0 images/s, 200 MiB"
    words = shlex.split(command.partition(":")[2])
    assert words[-3:] == ["embed", "data.batch_size=64", 'data.shards="/a b/{0..3}.tar"'], "all images, no limit"


def test_the_advice_says_where_the_points_were_too_short() -> None:
    assert "its run took 0.4 s" in sweep.advice(point(64, 1200, 200, predict_seconds=0.4))


def test_the_plot_tells_every_point_in_marks_and_in_words() -> None:
    points = [point(128, 1000, 300), point(32, 900, 100), point(256)]
    svg = sweep.plot_points(points, points[0])
    root, shown = ElementTree.fromstring(svg), texts(svg)
    assert [element.text for element in root.iter(f"{SVG}tspan")] == ["32", "128", "256"]
    assert {"900", "1,000", "100", "300", "images per batch (data.batch_size)"} <= set(shown)
    assert shown.count("out of memory") == 2 and len(list(root.iter(f"{SVG}polyline"))) == 2
    described = root.findtext(f"{SVG}desc")
    assert described == (
        "32: 900 images per second, 100 MiB; 128: 1,000 images per second, 300 MiB (best); 256: out of memory"
    )
    assert "prefers-color-scheme: dark" in svg and root.findtext(f"{SVG}title")


def test_the_plot_of_another_key_names_its_points() -> None:
    points = [point(64, rate, 100, name=f"model.dtype={dtype}") for dtype, rate in (("a<b>&", 10.0), ("auto", 20.0))]
    svg = sweep.plot_points(points, points[1])
    root = ElementTree.fromstring(svg)
    assert [element.text for element in root.iter(f"{SVG}tspan")] == ["dtype=a<b>&", "dtype=auto"]
    assert "point of the sweep" in texts(svg) and not list(root.iter(f"{SVG}polyline"))


def test_the_end_of_a_sweep_leaves_table_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep.finish(tmp_path, [point(64, 1200, 200), point(128)])
    assert [one["state"] for one in json.loads((tmp_path / "sweep.json").read_text())] == ["done", "out of memory"]
    assert ElementTree.fromstring((tmp_path / "sweep.svg").read_text()).tag == f"{SVG}svg"
    out = capsys.readouterr().out
    assert "best:     data.batch_size=64" in out and str(tmp_path / "sweep.svg") in out
