"""The benchmark of a GPU, tried without one: each step in a process of its own, whatever becomes of the others."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from helpers.jobs import wait_for
from lora_clip.app.command import main
from lora_clip.benchmark.gpu.findings import CUT, DONE, FAILED, NOT_HERE, NOT_RUN, Result
from lora_clip.benchmark.gpu.run import benchmark_gpu
from lora_clip.benchmark.gpu.sizes import Settings
from lora_clip.benchmark.gpu.steps import Step, choose
from lora_clip.errors import ConfigError

MINUTES = 10.0
ENOUGH, SHORT = 60.0, 15.0
"""Seconds: more than a step here takes on any machine, and as many as one may have that never ends."""


def of_ours(name: str, share: float = ENOUGH, least: float = ENOUGH) -> Step:
    return Step(name, f"{name}, said in words", f"helpers.gpu_steps:{name}", share, least)


class Told:
    """What a benchmark of some real steps, and some that go wrong, wrote and said."""

    def __init__(self, work: Path) -> None:
        never = of_ours("well", least=1e6)
        self.steps = [
            *(of_ours("overrun", share=1e-6, least=SHORT), of_ours("crash"), of_ours("die"), never, of_ours("well")),
            *choose("machine,copies,pixels"),
        ]
        self.said = benchmark_gpu(Settings(str(work), tiny=True), MINUTES, self.steps)
        self.results = [Result.read(path) for path in sorted((work / "gpu").glob("*.json"))]
        self.saved = json.loads((work / "gpu.json").read_text())
        self.page = (work / "gpu.md").read_text()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    with pytest.MonkeyPatch.context() as patch:
        paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield Told(tmp_path_factory.mktemp("gpu"))


def test_each_step_tells_how_it_ended_and_the_next_goes_on(told: Told) -> None:
    ended = [(result.step, result.status) for result in told.results]
    assert ended == [
        *(("overrun", CUT), ("crash", FAILED), ("die", FAILED), ("well", NOT_RUN), ("well", DONE)),
        *(("machine", DONE), ("copies", NOT_HERE), ("pixels", DONE)),
    ]
    _, crash, die, never, well, _, copies, _ = told.results
    assert crash.why == "ValueError: the wheel came off" and [row.value for row in crash.rows] == [1]
    assert die.why == "ended with -9: last words"
    assert never.why.endswith(" s left, and it takes 1000000 at least")
    assert [row.value for row in well.rows] == [None, 7.5] and "ZeroDivisionError" in well.rows[0].note
    assert copies.why == "no CUDA"


def test_a_step_beyond_its_limit_is_ended_with_all_it_started_and_its_figures_are_kept(told: Told) -> None:
    overrun = told.results[0]
    assert overrun.why == f"at its limit of {SHORT:.0f} s" and SHORT <= overrun.seconds < ENOUGH
    (row,) = overrun.rows
    assert isinstance(row.value, int)
    started = row.value

    def gone() -> bool:
        try:
            return psutil.Process(started).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    assert wait_for(gone, 30)


def test_real_steps_measure(told: Told) -> None:
    machine, pixels = told.results[5], told.results[7]
    versions = {row.of["version"]: row.value for row in machine.rows if "version" in row.of}
    assert versions["torch"] == torch.__version__
    assert len(pixels.rows) == 4 and all(isinstance(row.value, float) and row.value > 0 for row in pixels.rows)


def test_all_of_it_is_in_one_file_and_on_one_page(told: Told) -> None:
    assert [Result(**{**one, "rows": ()}).status for one in told.saved["steps"]] == [one.status for one in told.results]
    for words in ("| no CUDA |", "| cut |", "at its limit of", "the wheel came off", "7.5 GB/s", "## Bars"):
        assert words in told.page
    assert "nothing of any machine" in told.said and "not run" in told.said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_without_a_gpu_it_says_what_to_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="--gpu --tiny tries the command on the CPU"):
        benchmark_gpu(Settings(str(tmp_path / "work")), MINUTES, [])
    assert not (tmp_path / "work").exists()
    assert main(["benchmark", "--gpu", "--work", str(tmp_path / "work"), "--only", "copies"]) == 2
    assert "PyTorch finds none here" in capsys.readouterr().err


def test_as_it_is_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    typed = ["benchmark", "--gpu", "--tiny", "--minutes", "3", "--work", str(tmp_path), "--only", "gpu-jpeg"]
    assert main(typed) == 0
    said = capsys.readouterr()
    assert "no CUDA" in said.out and str(tmp_path / "gpu.md") in said.out and "gpu-jpeg: JPEGs decoded" in said.err
    assert main([*typed[:-1], "no-such"]) == 2
    assert "--only: no such step: no-such; there are material, machine" in capsys.readouterr().err
