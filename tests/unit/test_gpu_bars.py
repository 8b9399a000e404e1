"""The benchmark of a GPU, in parts: how time is shared, bars and tables of made-up figures, and what is measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from helpers.models import save_adapter, save_base
from helpers.stand_in import StandIn
from lora_clip.benchmark.collection import Collection, photograph
from lora_clip.benchmark.digest import digest
from lora_clip.benchmark.gpu import bars, gpu_jpeg, material, safety, table, tower
from lora_clip.benchmark.gpu.bars import MISSED, NOT_MEASURED, REACHED, Verdict, verdicts
from lora_clip.benchmark.gpu.findings import CUT, DONE, NOT_HERE, RUNNING, Figure, Findings, Result, Row
from lora_clip.benchmark.gpu.products import tower_of
from lora_clip.benchmark.gpu.run import limit_of
from lora_clip.benchmark.gpu.sizes import FULL, TINY, Settings, Sizes
from lora_clip.benchmark.gpu.steps import STEPS, Step
from lora_clip.benchmark.photographs import list_photographs
from lora_clip.models.checkpoint import find_checkpoint
from lora_clip.models.compute import Compute
from lora_clip.models.embedder import MergedEmbedder
from lora_clip.models.encoder import ImageEncoder
from lora_clip.pixels.decode import prepare
from lora_clip.types import PreprocessSpec

SPEC = PreprocessSpec(224, (224, 224), "bicubic", 1 / 255, (0.5,) * 3, (0.5,) * 3)

# --- The steps and their time ---


def test_ten_minutes_are_shared_by_all_steps() -> None:
    assert 540 <= sum(step.share for step in STEPS) <= 660
    assert len({step.name for step in STEPS}) == len(STEPS)
    assert all(0 < step.least < step.share for step in STEPS)


def test_a_step_has_its_share_of_what_is_left_and_none_where_that_is_too_little() -> None:
    one, two = (Step(name, "", "", share=20, least=5) for name in "ab")
    assert limit_of(one, [one, two], 100) == pytest.approx(50)
    assert limit_of(two, [two], 90) == pytest.approx(90), "what the first left is the second's"
    assert limit_of(one, [one, two], 8) == 5
    assert limit_of(one, [one, two], 4.9) is None


@pytest.mark.parametrize("sizes", [FULL, TINY])
def test_jobs_are_over_whole_tars(sizes: Sizes) -> None:
    assert not any(images % sizes.photographs for images in (sizes.job, sizes.long_job, sizes.varied, sizes.checked))
    assert sizes.proven <= sizes.photographs


def test_figures_are_in_the_file_as_soon_as_they_are_told(tmp_path: Path) -> None:
    path = tmp_path / "step.json"
    Result("step", "a step", RUNNING, limit=3.0).write(path)
    findings = Findings(path)
    findings.add(Figure(1.5, "ms"), model="m", batch=8)
    assert Result.read(path).rows == (Row({"model": "m", "batch": 8}, 1.5, "ms"),)
    findings.attempt(lambda: Figure(torch.ones(2, 3).mm(torch.ones(2, 3)).sum().item()), model="m")
    findings.end(DONE)
    told = Result.read(path)
    assert told.status == DONE and told.limit == 3.0 and told.rows[1].value is None
    assert told.rows[1].note.startswith("failed: RuntimeError:")


# --- Bars and tables, of made-up figures ---


def step(name: str, *rows: Row, status: str = DONE, why: str = "") -> Result:
    return Result(name, f"{name} in words", status, why, seconds=2.0, limit=9.0, rows=rows)


def cosines(lowest: float) -> list[Row]:
    return [
        Row({"model": "vit-l-14", "dtype": dtype, "kind": kind}, value, "cosine")
        for dtype in ("float32", "bfloat16", "float16")
        for kind, value in (("raw", 0.99999), ("centred", lowest))
    ]


def job(seconds: float, images: int, rate: float = 0.0) -> list[Row]:
    return [
        Row({"model": "vit-b-32", "images": images, "job": "whole process"}, seconds, "s"),
        Row({"model": "vit-l-14", "images": images, "job": "predicting alone"}, rate, "images/s"),
    ]


def results(rate: float = 3000.0, cosine: float = 0.99995, long: float = 31.0) -> list[Result]:
    """A GPU that reaches everything, unless it is told to be worse."""
    return [
        step("fidelity", *cosines(cosine)),
        step("products", *(Row({"product": "large square", "dtype": one}, 700.0) for one in ("bfloat16", "float16"))),
        step(
            "tower",
            *(Row({"model": "vit-l-14", "dtype": one, "way": "eager"}, rate) for one in ("bfloat16", "float16")),
            Row({"model": "vit-l-14", "dtype": "float16", "way": "compiled"}, None, note="failed: no compiler"),
            Row({"model": "vit-b-32", "dtype": "float16", "way": "eager"}, 20_000.0),
            Row({"model": "vit-l-14", "dtype": "float16", "part": "a layer"}, 9_000.0, "ms"),
        ),
        step("pixels", Row({"pixels": "decode and resize", "on": "all cores"}, 5_200.0)),
        step("job", *job(13.0, FULL.job)),
        step("long-job", *job(long, FULL.long_job)),
        step("large-job", *job(20.0, FULL.job, 2_000.0)),
        step("same-bytes", Row({"same": "over workers"}, "equal"), Row({"same": "after a kill and a resume"}, "equal")),
        step("memory", Row({"memory": "data.batch_size=9"}, "said in a message", note="status 12")),
        step("sanitizer", Row({"sanitizer": "two batches of 8"}, 0, "errors")),
    ]


def judged(found: Sequence[Result]) -> dict[str, Verdict]:
    return {one.bar: one for one in verdicts(found) if "not by this command" not in one.found}


def one_of(found: dict[str, Verdict], word: str) -> Verdict:
    (bar,) = (bar for name, bar in found.items() if word in name)
    return bar


def test_all_bars_are_reached_where_all_figures_are_good() -> None:
    assert {bar.verdict for bar in judged(results()).values()} == {REACHED}
    assert len(judged(results())) == len(bars.BARS)


def test_a_bar_is_missed_by_the_figure_that_it_is_of() -> None:
    slow, far, decoding = judged(results(rate=2_000)), judged(results(cosine=0.9989)), judged(results(long=33.0))
    assert one_of(slow, "ViT-L/14 in bfloat16").verdict == MISSED
    assert one_of(slow, "ViT-L/14 in bfloat16").found == "46.3%: 324 of 700 TFLOP/s, 2,000 images/s"
    assert {one_of(far, f"of {dtype} to").verdict for dtype in ("float32", "bfloat16", "float16")} == {MISSED}
    assert one_of(far, "of bfloat16 to").found == "0.998900 (vit-l-14, centred)"
    assert one_of(decoding, "ViT-B/32 from JPEG").verdict == MISSED
    assert one_of(decoding, "ViT-B/32 from JPEG").found == "86.5%: 4,500 of 5,200 images/s"


def test_what_is_reached_so_far_is_not_reached_where_the_step_was_cut() -> None:
    good, bad = ([step("fidelity", *cosines(lowest), status=CUT)] for lowest in (0.99999, 0.99))
    found = one_of(judged(good), "of bfloat16 to")
    assert (found.verdict, found.found) == (NOT_MEASURED, "so far 0.999990 (vit-l-14, raw)")
    assert one_of(judged(bad), "of bfloat16 to").verdict == MISSED


def test_a_dtype_that_could_not_be_loaded_is_missed_with_its_reason() -> None:
    failed = Row({"model": "vit-l-14", "dtype": "float16"}, None, note="failed: ModelError: differs")
    found = judged([step("fidelity", *cosines(0.99999), failed)])
    assert one_of(found, "of float16 to") == Verdict(one_of(found, "of float16 to").bar, failed.note, MISSED)
    assert one_of(found, "of float32 to").verdict == REACHED


@pytest.mark.parametrize(
    ("name", "row", "word"),
    [
        ("same-bytes", Row({"same": "over workers"}, "different"), "over workers"),
        ("memory", Row({"memory": "x"}, "not said as meant", note="status 1: Traceback"), "out of memory"),
        ("sanitizer", Row({"sanitizer": "x"}, 3, "errors"), "compute-sanitizer"),
        ("job", Row({"job": "whole process", "images": FULL.job}, 30.5, "s"), "29,104 images"),
    ],
)
def test_what_is_not_as_meant_is_missed(name: str, row: Row, word: str) -> None:
    assert one_of(judged([step(name, row)]), word).verdict == MISSED


def test_what_was_not_measured_is_not_judged() -> None:
    cut = step("same-bytes", Row({"same": "after a kill and a resume"}, None, note="it ended by itself"), status=CUT)
    for found in ([], [cut], [step("tower", status=NOT_HERE, why="no CUDA")]):
        assert {bar.verdict for bar in verdicts(found)} == {NOT_MEASURED}


def test_the_table_has_a_line_for_each_step_and_figure() -> None:
    found = [
        step("copies", status=NOT_HERE, why="no CUDA"),
        step(
            "tower", Row({"model": "vit-l-14", "batch": 256, "way": "eager"}, 2712.3, "images/s", "a | b"), status=CUT
        ),
        step("fidelity", Row({"dtype": "half"}, 0.9999612, "cosine"), Row({"dtype": "int8"}, None, note="x" * 300)),
    ]
    lines = table.text(found, verdicts(found), tiny=False).splitlines()
    assert lines[0].split() == ["step", "of", "what", "found", "note"]
    assert lines[1].split("  ")[0] == "copies" and "no CUDA" in lines[1]
    assert lines[3].split() == ["tower", "vit-l-14,", "batch", "256,", "eager", "2,712", "images/s", "a", "|", "b"]
    assert "0.999961" in lines[5] and lines[6].endswith("x …")
    assert table.TINY in table.text(found, [], tiny=True)
    page = table.markdown(found, verdicts(found), tiny=False)
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows if line in rows[:8]} == {5}
    assert "a / b" in page and "x" * 300 in page


# --- What is measured ---


def test_arithmetic_is_counted_as_published() -> None:
    assert tower_of("vit-l-14").gflop == pytest.approx(162, abs=0.5)
    assert tower_of("vit-b-32").gflop == pytest.approx(8.8, abs=0.05)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> ImageEncoder:
    folder = tmp_path_factory.mktemp("model")
    base = save_base(folder / "base", layers=3)
    adapter = save_adapter(folder / "adapter", base)
    return MergedEmbedder(find_checkpoint(str(base), str(adapter)), Compute()).load().images.encoder


@pytest.mark.parametrize("index", [0, -1])
def test_a_layer_is_measured_alone(encoder: ImageEncoder, index: int, tmp_path: Path) -> None:
    figure = tower._layer_figure(Settings(str(tmp_path), tiny=True), encoder, 2, index)
    assert isinstance(figure.value, float) and figure.value > 0 and figure.unit == "ms"


def test_tars_hold_the_same_photographs_again_and_again(tmp_path: Path) -> None:
    settings = Settings(str(tmp_path), tiny=True)
    folder = material.shards(settings, TINY.long_job)
    found = list_photographs(folder, 10**6)
    assert len(found) == TINY.long_job and len({one.tar for one in found}) == TINY.long_job // TINY.photographs
    assert material.photographs(settings, 2) == [photograph(Collection(TINY.photographs, 0.0), n) for n in (0, 1)]
    assert found[TINY.photographs].read() == found[0].read()
    before = [path.stat().st_ino for path in sorted(folder.iterdir())]
    assert [path.stat().st_ino for path in sorted(material.shards(settings, TINY.long_job).iterdir())] == before


def test_pixels_of_a_gpus_decoder_become_the_models_input() -> None:
    photographs = [photograph(Collection(4, 0.0), number) for number in range(4)]
    pixels_BCHW = gpu_jpeg._pixels(StandIn(), SPEC, [gpu_jpeg._bytes(one) for one in photographs])
    expected_BCHW = torch.empty((4, 3, 224, 224), dtype=torch.uint8)
    for one, out_CHW in zip(photographs, expected_BCHW, strict=True):
        prepare(one, SPEC, out_CHW)
    assert pixels_BCHW.shape == expected_BCHW.shape and pixels_BCHW.dtype == torch.uint8
    apart_BCHW = (pixels_BCHW.int() - expected_BCHW.int()).abs()
    assert apart_BCHW.float().mean() < 0.5 and apart_BCHW.max() <= 1
    assert gpu_jpeg._distance(StandIn(), photographs).value == 0


def test_a_digest_is_of_every_file_that_a_reader_sees(tmp_path: Path) -> None:
    for kind in ("img_emb", "metadata", "ranks"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "0").write_bytes(b"0")
    before = digest(tmp_path)
    (tmp_path / "ranks" / "0").write_bytes(b"1")
    assert digest(tmp_path) == before
    (tmp_path / "metadata" / "0").write_bytes(b"1")
    assert digest(tmp_path) != before


@pytest.mark.parametrize(
    ("status", "said", "as_meant"),
    [
        (12, "error: out of memory: CUDA out of memory. Try a smaller data.batch_size", True),
        (0, "", False),
        (1, "Traceback (most recent call last): error: out of memory", False),
        (-9, "error: out of memory", False),
    ],
)
def test_the_end_of_a_job_that_does_not_fit_is_judged(status: int, said: str, as_meant: bool) -> None:
    assert (safety._judged(status, said).value == safety.SAID) is as_meant


def test_the_sanitizers_errors_are_read_from_its_log() -> None:
    log = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"
    assert safety._errors_in(log, 0, "verified").value == 0
    assert safety._errors_in(log.replace("0 err", "12 err"), 0, "").value == 12
    assert safety._errors_in("", 0, "").value is None and safety._errors_in(log, 2, "error").value is None
