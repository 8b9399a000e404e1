"""The benchmark: its collection, its rates, its table and chart, and all of it once, small, as a user runs it."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from helpers.jobs import lora_clip
from helpers.models import save_adapter, save_base
from lora_clip.benchmark import collection, extras, loops, peers, quick
from lora_clip.benchmark.ceilings import Ceilings
from lora_clip.benchmark.collection import Collection, make, photograph
from lora_clip.benchmark.measure import BenchmarkError, Pattern, Timing, measure
from lora_clip.benchmark.patterns import JOB, Material, ours, theirs
from lora_clip.benchmark.photographs import chunks, list_photographs
from lora_clip.benchmark.table import LOOP, Row, chart, duration, rows, text
from lora_clip.errors import ConfigError

CEILINGS = Ceilings(
    decode=2000, pixels=1500, forward=3000, batch_size=16, dtype="bfloat16", device="cpu", devices=1, cores=2
)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """A tiny model with its adapter, and 24 photographs in a tar."""
    folder = tmp_path_factory.mktemp("material")
    base = save_base(folder / "base")
    adapter = save_adapter(folder / "adapter", base, "CLIPModel", target_modules=["q_proj", "v_proj"])
    return Material(base, adapter, make(folder / "shards", Collection(24)))


# --- The collection ----------------------------------------------------------------------------------------------


def test_a_photograph_is_the_same_from_the_same_seed_and_number() -> None:
    first = photograph(Collection(3, seed=1), 2)
    assert first == photograph(Collection(3, seed=1), 2)
    assert first != photograph(Collection(3, seed=2), 2)
    assert first != photograph(Collection(3, seed=1), 1)


def test_photographs_cost_what_photographs_cost() -> None:
    """ImageNet's have 108 KB and 466 x 390 pixels in the mean: 4.9 bits a pixel."""
    files = [photograph(Collection(40, large_share=0), number) for number in range(40)]
    sizes = [Image.open(io.BytesIO(file)).size for file in files]
    bits = 8 * sum(map(len, files)) / sum(width * height for width, height in sizes)
    assert 4 < bits < 6
    assert 80_000 < np.mean(list(map(len, files))) < 140_000
    assert len(set(sizes)) >= 5


def test_a_share_has_12_megapixels() -> None:
    image = Image.open(io.BytesIO(photograph(Collection(1, large_share=1), 0)))
    assert image.size == collection.LARGE and image.width * image.height == 12_000_000


def test_a_collection_is_finished_where_it_was_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collection, "IMAGES_PER_SHARD", 4)
    wanted = Collection(10, large_share=0)
    folder = make(tmp_path / "c", wanted)
    before = {path.name: path.read_bytes() for path in folder.glob("*.tar")}
    assert sorted(before) == ["00000.tar", "00001.tar", "00002.tar"]
    assert [members(path) for path in sorted(folder.glob("*.tar"))] == [4, 4, 2]
    kept = (folder / "00000.tar").stat().st_ino
    (folder / "00001.tar").unlink()
    make(folder, wanted)
    assert {path.name: path.read_bytes() for path in folder.glob("*.tar")} == before
    assert (folder / "00000.tar").stat().st_ino == kept


def members(path: Path) -> int:
    with tarfile.open(path) as tar:
        return len(tar.getmembers())


def test_another_collection_in_the_folder_is_refused(tmp_path: Path) -> None:
    make(tmp_path, Collection(1, large_share=0))
    with pytest.raises(ConfigError, match="holds another collection"):
        make(tmp_path, Collection(2, large_share=0))


def test_photographs_are_listed_in_order_and_read_whole(material: Material) -> None:
    found = list_photographs(material.shards, 5)
    assert [photo.read() for photo in found] == [photograph(Collection(24), number) for number in range(5)]
    assert len(list_photographs(material.shards, 1000)) == 24


# --- The patterns ------------------------------------------------------------------------------------------------


def test_every_loop_gives_the_same_embeddings(material: Material) -> None:
    photographs = list_photographs(material.shards, 9)
    arguments = (photographs, material.base, material.adapter)
    expected = np.concatenate(list(loops.one_at_a_time(*arguments)))
    assert expected.shape == (9, 16)
    for loop in (loops.batches_one_at_a_time, loops.thread_pool, loops.thread_pool_of_batches):
        np.testing.assert_allclose(np.concatenate(list(loop(*arguments))), expected, atol=1e-5)
    careful = np.concatenate(list(peers.data_loader(*arguments)))
    assert np.sum(careful * expected, axis=1).min() > 0.999  # bfloat16 where the CPU has it


def test_sentence_transformers_is_a_row_only_where_it_is_installed(
    material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    for spec, there in ((object(), True), (None, False)):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, spec=spec: spec)
        assert ("sentence-transformers" in [pattern.name for pattern in theirs(material)]) is there


def test_a_row_of_this_job_names_what_it_overrides(material: Material) -> None:
    one, auto = ours(material, ["1", "auto"], ["data.decode=fast"])
    assert (one.name, one.workers, auto.workers) == (f"{JOB} data.decode=fast", "1 worker", "auto workers")
    assert {"data.num_workers=1", "data.decode=fast", "data.limit=7"} <= set(one.command(7, Path("out")))


def test_chunks() -> None:
    assert list(chunks([1, 2, 3], 2)) == [[1, 2], [3]]


# --- The rates ---------------------------------------------------------------------------------------------------


def takes(start: float, each: float) -> Pattern:
    """A pattern that is busy for `start` seconds and `each` more for every image."""

    def command(images: int, output: Path) -> Sequence[str]:
        return [sys.executable, "-S", "-c", f"import time; time.sleep({start + each * images})"]

    return Pattern("sleeper", "CPU", "none", command)


def test_a_rate_does_not_count_the_start() -> None:
    timing = Timing(takes(0, 0), {100: [9.0, 3.0, 3.1], 400: [4.6, 4.5, 30.0]})
    assert timing.rate == pytest.approx(300 / (4.6 - 3.1))
    assert timing.whole(0) == pytest.approx(2.6)
    assert timing.whole(1000) == pytest.approx(2.6 + 1000 / 200)


def test_runs_that_differ_by_noise_tell_no_rate() -> None:
    for longer in (3.95, 4.0, 4.1):
        noise = Timing(Pattern("sleeper", "CPU", "none", lambda images, output: []), {25: [4.0], 100: [longer]})
        assert noise.rate is None and noise.whole(1000) is None
        row = rows([noise], CEILINGS, 29_104)[0]
        assert (row.rate, row.share_of_ceiling, row.is_ceiling) == (None, None, False)
        assert "take more (--subset)" in text([row])
        ElementTree.fromstring(chart([row, *rows([], CEILINGS, 1)], "images per second"))


def test_runs_grow_until_one_is_long_enough_beyond_the_one_before(tmp_path: Path) -> None:
    (timing,) = measure([takes(0.1, 0.002)], 100_000, seconds=1.0, repeats=2, scratch=tmp_path)
    small, large = timing.sizes
    assert large == 4 * small and all(len(timing.seconds[size]) == 2 for size in timing.sizes)
    assert all(len(timing.seconds[size]) == 1 for size in timing.seconds if size < small)
    sizes = sorted(timing.seconds)
    assert all(after == 4 * before for before, after in pairwise(sizes))
    assert timing.seconds[large][0] - timing.seconds[small][0] >= 1.0


def test_runs_do_not_grow_beyond_the_collection(tmp_path: Path) -> None:
    (timing,) = measure([takes(0, 0)], 60, seconds=100, repeats=1, scratch=tmp_path)
    assert timing.sizes == (15, 60)


def test_a_program_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    broken = Pattern("broken", "CPU", "none", lambda images, output: [sys.executable, "-c", "raise OSError('no disk')"])
    with pytest.raises(BenchmarkError, match=r"ended with 1:[\s\S]*no disk"):
        measure([broken], 10, 1.0, 1, tmp_path)


def test_memory_is_that_of_the_whole_process_at_its_peak(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pattern that holds 10 MB for every 1,000 images, for as long as it takes to be seen."""

    def command(images: int, output: Path) -> Sequence[str]:
        return [sys.executable, "-S", "-c", f"import time; held = b'x' * {10_000 * images}; time.sleep(0.8)"]

    monkeypatch.setattr(extras, "ours", lambda *_: [Pattern("holder", "CPU", "none", command)])
    said = extras.memory(material, 15_000, tmp_path)
    small, large = (int(word.replace(",", "")) for word in re.findall(r"([\d,]+) MiB over", said))
    assert large - small == pytest.approx(120e6 / 2**20, abs=8), said


# --- What is shown -----------------------------------------------------------------------------------------------


def timing(name: str, rate: float) -> Timing:
    """A pattern of this rate with two seconds of start."""
    return Timing(Pattern(name, "CPU", "none", lambda images, output: []), {n: [2 + n / rate] for n in (100, 400)})


def test_the_ceiling_counts_both_jobs_where_they_share_the_cores() -> None:
    assert CEILINGS.binding == pytest.approx(1000)
    shared = CEILINGS.__dict__ | {"device": "cuda"}
    assert Ceilings(**shared).binding == 1500


def test_a_row_has_its_ratio_to_the_loop_and_its_share_of_the_ceiling() -> None:
    loop, job, *limits = rows([timing(LOOP, 50), timing("this job", 900)], CEILINGS, 29_104)
    assert loop.times_the_loop == pytest.approx(1)
    assert job.times_the_loop == pytest.approx(18) and job.share_of_ceiling == pytest.approx(0.9)
    assert job.projected_seconds == pytest.approx(2 + 29_104 / 900)
    assert job.seconds_for_1000 == pytest.approx(2 + 1000 / 900)
    assert [limit.rate for limit in limits] == [2000, 1500, 3000, pytest.approx(1000)]
    assert [row.is_ceiling for row in (loop, job, *limits)] == [False, False, True, True, True, True]
    assert all(limit.projected_seconds is None for limit in limits)


def test_without_the_loop_there_is_no_ratio_to_it() -> None:
    assert all(row.times_the_loop is None for row in rows([timing("this job", 900)], CEILINGS, 29_104))


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (14.2, "14 s"),
        (59.4, "59 s"),
        (59.7, "1 min 0 s"),
        (372, "6 min 12 s"),
        (3599.7, "1 h 0 min"),
        (48e3, "13 h 20 min"),
    ],
)
def test_a_duration_is_told_in_the_unit_it_is_read_in(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_the_chart_is_an_svg_that_says_the_same_in_words() -> None:
    found = [*rows([timing("<loop> & co", 50)], CEILINGS, 10), Row("x", "-", "-", 1.5, None, None, None, 0.1)]
    root = ElementTree.fromstring(chart(found, "images per second, a & b"))
    words = "".join(root.itertext())
    assert "<loop> & co, none: 50.0 images per second" in words and "images per second, a & b" in words
    assert all(row.pattern in words for row in found)
    assert len([element for element in root.iter() if element.tag.endswith("rect")]) == 1 + len(found)


def test_the_start_is_measured_beside_its_imports(material: Material, tmp_path: Path) -> None:
    said = extras.start(material, 1, tmp_path)
    assert re.fullmatch(r"start: \d+\.\d s to the first batch .* alone: \d+\.\d\d x", said)


# --- This checkout against another commit -------------------------------------------------------------------------


def test_a_ratio_has_an_interval_that_holds_it_and_tells_a_difference_from_noise() -> None:
    noise = quick.ratio([1.0, 1.1, 0.9, 1.0], [1.0, 0.9, 1.1, 1.0])
    assert noise.low < 1 < noise.high
    slower = quick.ratio([1.20, 1.21, 1.19, 1.22], [1.0, 1.0, 1.0, 1.0])
    assert 1.1 < slower.low < slower.mean < slower.high < 1.3
    assert quick.ratio([2.0], [1.0]).high == float("inf")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository of three commits; the last two are a branch's."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for number, branch in enumerate(("main", "mine", "mine")):
        if number < 2:
            git(folder, *(("init", "-q", "-b", branch) if number == 0 else ("checkout", "-q", "-b", branch)))
        (folder / "file").write_text(str(number))
        git(folder, "add", "file")
        git(folder, "-c", "user.name=me", "-c", "user.email=me@here", "commit", "-q", "-m", f"number {number}")
    return folder


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True).stdout


def test_a_branch_is_compared_with_where_it_left_main_and_main_with_the_commit_before(checkout: Path) -> None:
    assert quick.default_commit(checkout) == git(checkout, "rev-parse", "main").strip()
    git(checkout, "checkout", "-q", "main")
    assert quick.default_commit(checkout) == "HEAD~1"


def test_another_commit_lies_in_a_folder_of_its_own_as_long_as_it_is_wanted(checkout: Path, tmp_path: Path) -> None:
    with quick.worktree(checkout, "main", tmp_path / "other") as other:
        assert (other / "file").read_text() == "0"
        assert (checkout / "file").read_text() == "2"
    assert not (tmp_path / "other").exists()
    assert len(git(checkout, "worktree", "list").splitlines()) == 1


def test_a_commit_that_is_none_and_a_place_that_is_no_checkout(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="nonsense"), quick.worktree(checkout, "nonsense", tmp_path / "other"):
        pass
    monkeypatch.setattr("lora_clip.__file__", str(tmp_path / "site" / "a" / "lora_clip" / "__init__.py"))
    with pytest.raises(ConfigError, match="clone the repository"):
        quick.find_checkout()


@pytest.mark.slow
def test_two_trees_are_run_and_told_apart(material: Material, tmp_path: Path) -> None:
    tree = quick.find_checkout()
    whole = quick.whole_run(tree, material, 20, tmp_path / "output")
    assert min(whole.wall, whole.cpu, whole.predicting) > 0
    said = quick.describe([(whole, whole)] * 3, "abc (before)", 20)
    assert re.search(r"wall time +1\.000 +1\.000 to 1\.000", said)
    assert said.endswith("embeddings: the same bytes")
    with pytest.raises(BenchmarkError, match="ended with"):
        quick.whole_run(tree, Material(tmp_path, tmp_path, tmp_path), 20, tmp_path / "output")


def test_three_adapters_in_one_pass_are_measured_beside_one(material: Material, tmp_path: Path) -> None:
    said = extras.one_pass(material, 20, 0.1, 1, tmp_path)
    assert "in one pass over photographs" in said and " x the time for 20 images" in said
    assert "without start and end" in said or "too few images" in said
    assert sorted(path.name for path in (tmp_path / "output").iterdir()) == ["0", "1", "2"]


# --- All of it, as a user runs it --------------------------------------------------------------------------------


def test_the_whole_benchmark(material: Material, tmp_path: Path) -> None:
    done = lora_clip(
        "benchmark",
        *("--base", material.base, "--adapter", material.adapter, "--shards", material.shards, "--work", tmp_path),
        *("--subset", 20, "--seconds", 0.1, "--repeats", 1, "--workers", "auto", "--only", f"{LOOP},{JOB}"),
        *("--json", tmp_path / "b.json", "--chart", tmp_path / "b.svg"),
    )
    assert done.returncode == 0, done.stderr
    saved = json.loads((tmp_path / "b.json").read_text())
    names = [row["pattern"] for row in saved["rows"]]
    assert names[:2] == [LOOP, JOB] and len(names) == 6 and "binding ceiling" in names[-1]
    assert saved["images"] == 20 and "20 images" in done.stdout and "of the ceiling" in done.stdout
    assert text([Row(**row) for row in saved["rows"]]) in done.stdout
    ElementTree.parse(tmp_path / "b.svg")


def test_mistakes_are_told_in_a_line(material: Material, tmp_path: Path) -> None:
    unknown = lora_clip("benchmark", "--shards", material.shards, "--work", tmp_path, "--base", material.base)
    assert unknown.returncode == 2 and unknown.stderr.startswith("error: give both --base and --adapter")
    named = ("--base", material.base, "--adapter", material.adapter, "--work", tmp_path)
    nothing = lora_clip("benchmark", "--shards", material.shards, *named, "--only", "no-such")
    assert nothing.returncode == 2 and "no such pattern: no-such" in nothing.stderr
    (tmp_path / "empty").mkdir()
    empty = lora_clip("benchmark", "--shards", tmp_path / "empty", *named)
    assert empty.returncode == 2 and "holds 0 images in tars" in empty.stderr


def test_random_models_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_clip.benchmark import models

    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 32}
    monkeypatch.setitem(models.RANDOM, "one-layer", small)
    base, adapter = models.make_random(tmp_path, "one-layer")
    weights = (base / "model.safetensors").read_bytes(), (adapter / "adapter_model.safetensors").read_bytes()
    assert models.make_random(tmp_path, "one-layer") == (base, adapter)
    again, other = models.make_random(tmp_path / "again", "one-layer")
    assert ((again / "model.safetensors").read_bytes(), (other / "adapter_model.safetensors").read_bytes()) == weights
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert Path(settings["base_model_name_or_path"]) == base
