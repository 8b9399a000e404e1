"""data.stages: a user's own stages change, mark and read ahead, and cannot lose an image."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from helpers.images import jpeg, write_shards, write_tar
from helpers.queues import alone
from lora_clip.errors import ConfigError
from lora_clip.loading.catalog import Catalog
from lora_clip.loading.dataset import PixelDataset
from lora_clip.loading.plan import make_plan, take_inventory
from lora_clip.loading.stages import CheckedStage, load_stages
from lora_clip.models.preprocess import parse_spec
from lora_clip.sources.base import Source, open_source
from lora_clip.sources.tar import TarSource
from lora_clip.types import PixelBatch, RawSample


def batched(samples: Iterator[RawSample], count: int) -> Iterator[list[RawSample]]:
    while some := list(islice(samples, count)):
        yield some


SPEC = parse_spec({"size": 16, "crop_size": 16})
Stage = Callable[[Iterator[RawSample]], Iterable[RawSample]]


def through(folder: Path, *stages: Stage, batch_size: int = 4) -> list[PixelBatch]:
    """The batches of a folder of tars with these stages in the pipeline."""
    return out_of(TarSource(str(folder)), *stages, batch_size=batch_size)


def out_of(source: Source, *stages: Stage, batch_size: int = 4) -> list[PixelBatch]:
    """The batches of a source with these stages in the pipeline."""
    plan = make_plan(take_inventory(source), {}, ranks=1, workers=0, batch_size=batch_size)
    checked = [CheckedStage(getattr(stage, "__name__", "stage"), stage) for stage in stages]
    return list(PixelDataset(source, SPEC, batch_size, Catalog(source, plan.shards), [alone(plan)], stages=checked))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shards(tmp_path, [5, 3])
    return tmp_path


def test_the_dataset_is_a_webdataset_pipeline(shards: Path) -> None:
    assert issubclass(PixelDataset, webdataset.DataPipeline)


def test_a_filtered_image_is_a_reject_with_its_reason_and_takes_no_place(shards: Path) -> None:
    def only_even(samples: Iterator[RawSample]) -> Iterator[RawSample]:
        for sample in samples:
            yield sample if sample.position % 2 == 0 else sample.leave_out("odd")

    found = through(shards, only_even)
    assert [[row.position for row in batch.rows] for batch in found] == [[0, 2], [4], [0, 2]]
    rejects = [(one.shard, one.position, one.stage, one.error) for batch in found for one in batch.rejects]
    assert rejects == [(0, 1, "filter", "odd"), (0, 3, "filter", "odd"), (1, 1, "filter", "odd")]
    assert [batch.last for batch in found] == [False, True, True]
    assert not any(batch.pixels_BCHW[len(batch.rows) :].any() for batch in found)


def test_a_changed_image_is_what_is_embedded_also_where_the_sample_is_made_anew(shards: Path) -> None:
    white = jpeg(40, 40, seed=77)

    def same(samples: Iterator[RawSample]) -> Iterator[RawSample]:
        for sample in samples:
            yield RawSample(sample.shard, sample.position, sample.key, sample.path, white)

    found = through(shards, same)
    assert {(row.width, row.height, row.caption) for batch in found for row in batch.rows} == {(40, 40, None)}
    first = found[0].pixels_BCHW[0]
    assert all((batch.pixels_BCHW[: len(batch.rows)] == first).all() for batch in found)


def test_a_stage_that_reads_ahead_over_ranges_leaves_the_batches_as_they_are(shards: Path) -> None:
    def ahead(samples: Iterator[RawSample]) -> Iterator[RawSample]:
        for some in batched(samples, 6):
            yield from some

    plain, found = through(shards), through(shards, ahead, webdataset.map(lambda sample: sample))
    assert [(batch.work, batch.last, batch.rows) for batch in found] == [
        (batch.work, batch.last, batch.rows) for batch in plain
    ]
    assert all((one.pixels_BCHW == two.pixels_BCHW).all() for one, two in zip(plain, found, strict=True))


def drops(samples: Iterator[RawSample]) -> Iterator[RawSample]:
    return (sample for sample in samples if sample.position != 1)


def drops_the_last(samples: Iterator[RawSample]) -> Iterator[RawSample]:
    return (sample for sample in samples if (sample.shard, sample.position) != (1, 2))


def stops_early(samples: Iterator[RawSample]) -> Iterator[RawSample]:
    return islice(samples, 6)


def drops_all(samples: Iterator[RawSample]) -> Iterator[RawSample]:
    return (sample for sample in samples if not sample.key)


def doubles(samples: Iterator[RawSample]) -> Iterator[RawSample]:
    return (copy for sample in samples for copy in (sample, sample))


def swaps(samples: Iterator[RawSample]) -> Iterator[RawSample]:
    return (sample for some in batched(samples, 2) for sample in reversed(some))


def renumbers(samples: Iterator[RawSample]) -> Iterator[RawSample]:
    return (replace(sample, position=sample.position + 1) for sample in samples)


@pytest.mark.parametrize("stage", [drops, drops_the_last, stops_early, drops_all, doubles, swaps, renumbers])
def test_a_stage_that_drops_adds_or_reorders_samples_is_one_message(shards: Path, stage: Stage) -> None:
    with pytest.raises(ConfigError, match=rf"data\.stages: {stage.__name__} has to yield every sample.*leave_out"):
        through(shards, stage)


def test_damaged_samples_pass_a_stage_and_stay_damaged(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.jpg": jpeg()})
    path.write_bytes(path.read_bytes()[:1024].ljust(1536, b"\0")[:700])
    (batch,) = through(tmp_path, lambda samples: samples)
    assert [reject.stage for reject in batch.rejects] == ["read"] and not batch.rows


# --- their names ---


def test_stages_are_found_by_name_also_in_the_folder_one_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_own_stages.py").write_text("def upper(samples):\n    yield from samples\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (stage,) = load_stages(["my_own_stages:upper"])
    assert stage.name == "my_own_stages:upper"
    assert load_stages([]) == load_stages(None) == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("mine:only_wide", "give a list"),
        (7, "give a list"),
        (["json"], "not of the form module:function"),
        (["json:"], "not of the form module:function"),
        (["no_such_module_here:f"], "cannot be imported: No module named"),
        (["json:no_such_function"], "the module json has no function no_such_function"),
        (["json:__doc__"], "has no function"),
    ],
)
def test_a_name_that_leads_nowhere_is_one_message(names: object, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.stages.*{message}"):
        load_stages(names)


@pytest.mark.parametrize("kind", ["parquet", "list", "zip"])
def test_a_stage_sees_the_samples_of_every_source(kind: str, tmp_path: Path) -> None:
    pictures = {f"{number}.jpg": jpeg(seed=number) for number in range(3)}
    cells = [{"bytes": content, "path": name} for name, content in pictures.items()]
    pq.write_table(pa.table({"image": cells, "caption": list("abc")}), tmp_path / "a.parquet")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for (name, content), caption in zip(pictures.items(), "abc", strict=True):
            (tmp_path / name).write_bytes(content)
            file.writestr(name, content)
            file.writestr(name.replace("jpg", "txt"), caption)
    (tmp_path / "a.csv").write_text("path,caption\n0.jpg,a\n1.jpg,b\n2.jpg,c\n")
    file_of = {"parquet": "a.parquet", "list": "a.csv", "zip": "a.zip"}
    seen = []

    def looks(samples: Iterator[RawSample]) -> Iterator[RawSample]:
        for sample in samples:
            seen.append((sample.position, sample.image, sample.extras["txt"]))
            yield sample.leave_out("b") if sample.extras["txt"] == b"b" else sample

    (batch,) = out_of(open_source({kind: str(tmp_path / file_of[kind])}), looks)
    assert seen == [(n, pictures[f"{n}.jpg"], text) for n, text in enumerate([b"a", b"b", b"c"])]
    assert [row.position for row in batch.rows] == [0, 2]
    assert [(one.position, one.stage, one.error) for one in batch.rejects] == [(1, "filter", "b")]
