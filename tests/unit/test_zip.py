"""Zip files: images by their names, any range of them, damage by member."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.images import jpeg
from lora_clip.errors import DataError
from lora_clip.inspection.recheck import compare_inputs
from lora_clip.sources.base import Shard
from lora_clip.sources.zip import ZipSource
from lora_clip.types import RawSample, WorkRange


def fill(path: Path, images: int = 5) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("d/", b"")
        for number in range(images):
            file.writestr(f"d/{number}.v1.jpg", jpeg(seed=number))
            file.writestr(f"d/{number}.v1.txt", f"picture {number}")
        file.writestr("d/0.seg.png", b"mask")
    return path


def shards(path: Path, keys: tuple[str, ...] | None = None, known: list[Shard] | None = None) -> list[Shard]:
    return list(ZipSource(str(path), keys).shards(known or []))


def read(shard: Shard, start: int = 0, stop: int | None = None, keys: tuple[str, ...] | None = None) -> list[RawSample]:
    return list(
        ZipSource(shard.path, keys).read(shard, WorkRange(shard.id, start, shard.images if stop is None else stop))
    )


def test_images_with_their_captions_and_any_range_of_them(tmp_path: Path) -> None:
    (named,) = shards(fill(tmp_path / "a.zip"), ("v1.jpg",))
    assert (named.images, dict(named.extensions), dict(named.left_out)) == (5, {"v1.jpg": 5}, {"seg.png": 1})
    assert [one.key for one in read(named, keys=("v1.jpg",))] == [f"d/{number}" for number in range(5)]
    (shard,) = shards(tmp_path / "a.zip")
    whole = read(shard)
    assert [one.key for one in whole] == [*(f"d/{n}.v1" for n in range(5)), "d/0.seg"]
    assert whole[3].image == jpeg(seed=3) and whole[3].extras == {"txt": b"picture 3"}
    for start in range(6):
        for stop in range(start, 7):
            assert read(shard, start, stop) == whole[start:stop]


def test_known_zips_keep_their_ids_and_changes_are_noticed(tmp_path: Path) -> None:
    fill(tmp_path / "b.zip")
    known = [Shard.from_json(json.loads(json.dumps(one.to_json()))) for one in shards(tmp_path)]
    fill(tmp_path / "a.zip", 2)
    assert [(one.id, Path(one.path).name) for one in shards(tmp_path, known=known)] == [(0, "b.zip"), (1, "a.zip")]
    assert compare_inputs([{**known[0].to_json(), "wanted": 6}], None) == ([], [])
    fill(tmp_path / "b.zip", 6)
    assert "has 7 images now" in compare_inputs([{**known[0].to_json(), "wanted": 6}], None)[0][0]
    (tmp_path / "b.zip").unlink()
    with pytest.raises(DataError, match="No such file"):
        read(known[0])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_each_image_of_a_damaged_zip_is_one_sample_the_same_from_everywhere(
    tmp_path: Path, data: st.DataObject
) -> None:
    whole = bytearray(fill(tmp_path / "a.zip").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(whole) - 1))
        run = data.draw(st.binary(min_size=1, max_size=20))
        whole[at : at + len(run)] = run
    cut = data.draw(st.none() | st.integers(0, len(whole)))
    (tmp_path / "a.zip").write_bytes(bytes(whole[:cut]))
    (shard,) = shards(tmp_path / "a.zip")
    found = read(shard)
    assert [one.position for one in found] == list(range(shard.images))
    assert read(shard, shard.images // 2) == found[shard.images // 2 :]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_image_that_cannot_be_unpacked_costs_itself_whatever_it_was_packed_by(tmp_path: Path, method: int) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as file:
        for number in range(3):
            file.writestr(f"{number}.jpg", jpeg(seed=number))
        middle = file.getinfo("1.jpg")
    whole = bytearray(path.read_bytes())
    at = middle.header_offset + 30 + len("1.jpg") + 16
    whole[at : at + 40] = bytes(40)
    path.write_bytes(whole)
    (shard,) = shards(path)
    assert [one.damage is None for one in read(shard)] == [True, False, True]
