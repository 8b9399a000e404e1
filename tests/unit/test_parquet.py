"""Parquet: images in a column, whatever wrote it; only what is wanted is read, and damage costs what cannot be read."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.images import jpeg, png
from lora_clip.errors import DataError
from lora_clip.inspection.recheck import compare_inputs
from lora_clip.io.range_file import RangeFile
from lora_clip.io.ranges import RangeReader, open_ranges
from lora_clip.sources.base import Shard, count_extensions
from lora_clip.sources.parquet import ParquetSource
from lora_clip.types import RawSample, WorkRange

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path: Path, columns: dict[str, Any], group: int = 4, schema: pa.Schema | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, schema=schema), path, row_group_size=group, **options)
    return path


def pictures(path: Path, rows: int = 10, group: int = 4, **options: Any) -> Path:
    """Images of plain bytes with a key and a caption each."""
    columns = {
        "image": [jpeg(seed=number) for number in range(rows)],
        "key": [f"k{number}" for number in range(rows)],
        "caption": [f"picture {number}" for number in range(rows)],
    }
    return write(path, columns, group, **options)


def shards(location: Any, keys: tuple[str, ...] | None = None, known: list[Shard] | None = None) -> list[Shard]:
    return list(ParquetSource(location, keys).shards(known or []))


def read(shard: Shard, start: int = 0, stop: int | None = None) -> list[RawSample]:
    work = WorkRange(shard.id, start, shard.images if stop is None else stop)
    return list(ParquetSource(shard.path).read(shard, work))


def only(location: Any, keys: tuple[str, ...] | None = None) -> list[RawSample]:
    (shard,) = shards(str(location), keys)
    return read(shard)


def fields(sample: RawSample) -> dict[str, Any]:
    return dict(json.loads(sample.extras["json"]))


# --- what the columns are ---


def test_bytes_with_their_keys_captions_and_other_columns(tmp_path: Path) -> None:
    columns = {
        "score": [0.5, float("nan")],
        "JPG": [jpeg(seed=1), png(seed=2)],
        "__key__": ["a", "b"],
        "TEXT": ["one", None],
        "URL": ["https://x/1", None],
        "taken": [datetime.date(2024, 5, 6), None],
        "tags": [["x", "y"], []],
        "thumbnail": [b"small", b"small"],
    }
    path = write(tmp_path / "a.parquet", columns)
    first, second = only(path)
    assert (first.key, first.image, first.extras["txt"]) == ("a", jpeg(seed=1), b"one")
    assert first.path == f"{path}/0" and (second.key, second.image) == ("b", png(seed=2))
    assert fields(first) == {"score": 0.5, "taken": "2024-05-06", "tags": ["x", "y"], "url": "https://x/1"}
    assert "txt" not in second.extras and fields(second)["score"] is None


def test_what_datasets_writes(tmp_path: Path) -> None:
    """Structs, and features in the schema: marked columns win, class labels keep their numbers and get their names."""
    features = {
        "mask": {"_type": "Image"},
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": ["cat", "dog"]},
    }
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema([("mask", STRUCT), ("image", STRUCT), ("label", pa.int64()), ("raw", pa.binary())], about)
    images = [{"bytes": jpeg(seed=number), "path": f"n/{number}.v1.jpg"} for number in range(2)]
    columns = {"mask": images[::-1], "image": images, "label": [1, None], "raw": [b"", b""]}
    path = write(tmp_path / "train-00000-of-00001.parquet", columns, schema=schema)
    (shard,) = shards(str(tmp_path))
    first, second = read(shard)
    assert (first.key, first.image, fields(first)) == ("n/0.v1", jpeg(seed=0), {"label": 1, "label_name": "dog"})
    assert fields(second) == {"label": None}
    assert count_extensions([shard]) == ({"image": 2}, {"mask": 2})
    assert [sample.image for sample in only(path, ("mask",))] == [jpeg(seed=1), jpeg(seed=0)]


def test_what_a_tar_with_json_files_became(tmp_path: Path) -> None:
    columns = {"png": [png()], "json": [{"url": "u", "n": 1}], "__key__": ["k"], "__url__": ["shard.tar"]}
    (sample,) = only(write(tmp_path / "a.parquet", columns))
    assert sample.key == "k" and fields(sample) == {"url": "u", "n": 1, "__url__": "shard.tar"}


def test_the_first_of_several_captions_is_the_caption_and_all_stay(tmp_path: Path) -> None:
    (sample,) = only(write(tmp_path / "a.parquet", {"image": [jpeg()], "captions": [["one", "two"]]}))
    assert sample.extras["txt"] == b"one" and fields(sample) == {"captions": ["one", "two"]}
    assert sample.key == "0", "the number of the row where there is nothing better"


def test_the_column_is_found_by_its_type_and_named_where_that_does_not_do(tmp_path: Path) -> None:
    odd = write(tmp_path / "odd.parquet", {"image": ["a path"], "pixels": [jpeg()]})
    assert only(odd)[0].image == jpeg()
    two = write(tmp_path / "two.parquet", {"left": [jpeg(seed=1)], "right": [jpeg(seed=2)]})
    with pytest.raises(DataError, match=r"several columns.*data\.image_key=left, or another of left, right"):
        only(two)
    assert only(two, ("right",))[0].image == jpeg(seed=2)
    with pytest.raises(DataError, match=r"no column of images called up: type data\.image_key=left"):
        only(two, ("up",))
    paths = write(tmp_path / "paths.parquet", {"image": ["a.jpg"]})
    with pytest.raises(DataError, match=r"its columns are image \(string\); .* data=list data\.list="):
        only(paths)


# --- rows without bytes ---


def test_a_row_without_an_image_is_a_reject_and_one_with_a_path_is_read_below_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "img").mkdir(parents=True)
    (folder / "img/a.jpg").write_bytes(jpeg(seed=1))
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "sub").mkdir()
    outside = ["../secret.jpg", str(tmp_path / "secret.jpg"), "img/../../secret.jpg", "link.jpg", "file:///etc/passwd"]
    outside += ["https://example.org/a.jpg", "..\\secret.jpg", "a\0b", ""]
    rows = [{"bytes": None, "path": path} for path in ["img/a.jpg", "gone.jpg", "sub", *outside, None]]
    path = write(folder / "a.parquet", {"image": [*rows, None]}, schema=pa.schema([("image", STRUCT)]))
    found = only(path)
    assert (found[0].image, found[0].key) == (jpeg(seed=1), "img/a")
    assert all(sample.damage and not sample.image for sample in found[1:])
    assert "No such file" in str(found[1].damage) and "not a regular file" in str(found[2].damage)
    assert all("the file's own folder" in str(sample.damage) for sample in found[3 : 3 + len(outside) - 1])
    assert [sample.damage for sample in found[-2:]] == ["the row has no image"] * 2
    assert [sample.position for sample in found] == list(range(len(rows) + 1))


# --- reading ---


@pytest.mark.parametrize("group", [1, 4, 100])
def test_any_range_is_a_slice_of_the_whole(tmp_path: Path, group: int) -> None:
    (shard,) = shards(str(pictures(tmp_path / "a.parquet", group=group)))
    whole = read(shard)
    assert [(sample.position, sample.key) for sample in whole] == [(i, f"k{i}") for i in range(10)]
    for start in range(10):
        for stop in range(start, 11):
            assert read(shard, start, stop) == whole[start:stop]


def test_ranges_that_follow_one_another_go_on_where_the_last_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    (shard,) = shards(str(pictures(tmp_path / "a.parquet", group=100)))
    whole = read(shard)

    def noted(path: str) -> RangeReader:
        opened.append(path)
        return open_ranges(path)

    monkeypatch.setattr("lora_clip.sources.parquet_file.open_ranges", noted)
    assert [*read(shard, 0, 3), *read(shard, 3, 7), *read(shard, 7, 9)] == whole[:9]
    assert len(opened) == 1
    first = ParquetSource(shard.path).read(shard, WorkRange(0, 9, 10))
    again = ParquetSource(shard.path).read(shard, WorkRange(0, 9, 10))
    assert [next(first), next(again)] == [whole[9]] * 2 and len(opened) == 2, "two readers at once share nothing"


def test_a_range_in_the_middle_reads_only_its_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [bytes([number]) * 20_000 for number in range(100)]
    path = write(tmp_path / "a.parquet", {"image": rows}, group=10, compression="none", use_dictionary=False)
    (shard,) = shards(str(path))
    seen: list[int] = []
    read_bytes = RangeFile.read

    def noted(self: RangeFile, size: int | None = -1) -> bytes:
        data = read_bytes(self, size)
        seen.append(len(data))
        return data

    monkeypatch.setattr(RangeFile, "read", noted)
    assert [sample.image for sample in read(shard, 50, 60)] == rows[50:60]
    assert sum(seen) < 300_000, "a tenth of two million bytes, and the footer"


def test_a_folder_a_glob_and_a_list_name_files_and_an_unchanged_one_is_not_read_again(tmp_path: Path) -> None:
    for name in ("b", "a/c"):
        pictures(tmp_path / f"{name}.parquet")
    found = shards(str(tmp_path))
    assert [(one.id, Path(one.path).name, one.images) for one in found] == [(0, "c.parquet", 10), (1, "b.parquet", 10)]
    assert [one.path for one in shards(str(tmp_path / "*.parquet"))] == [found[1].path]
    assert [one.path for one in shards([found[1].path, found[0].path])] == [found[1].path, found[0].path]
    known = [Shard.from_json(json.loads(json.dumps(one.to_json()))) for one in found]
    pictures(tmp_path / "0.parquet", rows=3)
    again = shards(str(tmp_path), known=known)
    assert again[:2] == found and all(one is earlier for one, earlier in zip(again, known, strict=False))
    assert (again[2].id, again[2].images) == (2, 3)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"data\.parquet=.*without a \.parquet file: .*load_from_disk"):
        shards(str(tmp_path / "none"))


def test_verify_notices_a_file_that_changed_or_is_gone(tmp_path: Path) -> None:
    path = pictures(tmp_path / "a.parquet")
    (shard,) = shards(str(path))
    lines = [{**shard.to_json(), "wanted": shard.images}]
    assert compare_inputs(lines, None) == ([], [])
    pictures(path, rows=11)
    assert compare_inputs(lines, None)[0] == [f"shard 0: {path} has 11 rows now, or others; 10 were embedded"]
    path.unlink()
    problems, notes = compare_inputs(lines, None)
    assert problems == [] and "No such file" in notes[0]


# --- damage ---


def test_what_is_no_parquet_file_is_one_reject(tmp_path: Path) -> None:
    whole = pictures(tmp_path / "a.parquet").read_bytes()
    for name, data in {
        "short": whole[:-3],
        "empty": b"",
        "text": b"<html>" * 99,
        "tail": whole[:-9] + b"x" * 9,
    }.items():
        (tmp_path / f"{name}.parquet").write_bytes(data)
        (sample,) = only(tmp_path / f"{name}.parquet")
        assert "not a whole Parquet file" in str(sample.damage)


def test_an_empty_file_has_no_images(tmp_path: Path) -> None:
    schema = pa.schema([("image", pa.binary())])
    (shard,) = shards(str(write(tmp_path / "a.parquet", {"image": []}, schema=schema)))
    assert (shard.images, dict(shard.extensions), read(shard)) == (0, {}, [])


def test_a_damaged_row_group_costs_its_rows_and_the_others_stay(tmp_path: Path) -> None:
    path = pictures(tmp_path / "a.parquet", compression="none", write_page_checksum=True)
    data = path.read_bytes()
    path.write_bytes(data.replace(jpeg(seed=5), b"x" * len(jpeg(seed=5)), 1))
    (shard,) = shards(str(path))
    found = read(shard)
    assert [sample.damage is None for sample in found] == [True] * 4 + [False] * 4 + [True] * 2
    assert "row group 1 of the Parquet file is damaged: " in str(found[5].damage)
    assert [sample.key for sample in found] == [f"k{number}" for number in range(10)]
    assert read(shard, 6, 9) == found[6:9], "the same rows, wherever reading starts"


def test_damaged_captions_cost_captions(tmp_path: Path) -> None:
    path = pictures(tmp_path / "a.parquet", compression="none", use_dictionary=False, write_page_checksum=True)
    path.write_bytes(path.read_bytes().replace(b"picture 5", b"pinture 5", 1))
    found = only(path)
    assert all(sample.damage is None for sample in found) and "txt" not in found[5].extras
    assert found[5].image == jpeg(seed=5) and found[8].extras["txt"] == b"picture 8"


def test_a_disk_that_fails_ends_the_run_since_another_may_not_meet_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shard,) = shards(str(pictures(tmp_path / "a.parquet", rows=40)))
    (tmp_path / "a.parquet").rename(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"cannot read shard .*a\.parquet: No such file"):
        read(shard)
    (tmp_path / "b.parquet").rename(tmp_path / "a.parquet")
    samples = ParquetSource(shard.path).read(shard, WorkRange(0, 0, 40))
    assert next(samples).damage is None

    def fails(self: Any, offset: int, length: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("lora_clip.io.ranges.LocalFile.read_at", fails)
    with pytest.raises(DataError, match="Input/output error"):
        list(samples)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.booleans(), st.sampled_from(["none", "snappy", "gzip", "zstd"]))
def test_each_row_of_a_damaged_file_is_one_sample_the_same_from_everywhere(
    tmp_path: Path, data: st.DataObject, checksums: bool, compression: str
) -> None:
    path = pictures(tmp_path / "a.parquet", write_page_checksum=checksums, compression=compression)
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(whole) - 1))
        run = data.draw(st.binary(min_size=1, max_size=40))
        whole[at : at + len(run)] = run
    path.write_bytes(bytes(whole))
    try:
        (shard,) = shards(str(path))
    except DataError:  # the names of the columns are damaged: a plain error
        return
    found = read(shard)
    assert [sample.position for sample in found] == list(range(shard.images))
    assert all((sample.damage is None) or not sample.image for sample in found)
    middle = shard.images // 2
    assert read(shard, middle) == found[middle:]
