"""folders: every image file of a tree once, and nothing of it that blocks, loops or ends the run."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import patch

import pytest

from lora_clip.errors import DataError
from lora_clip.loading.plan import take_inventory
from lora_clip.sources import folder as folder_source
from lora_clip.sources.base import Shard
from lora_clip.sources.folder import FolderSource
from lora_clip.types import RawSample, WorkRange


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def shards(root: Path, known: list[Shard] | None = None, keys: tuple[str, ...] | None = None) -> list[Shard]:
    return list(FolderSource(str(root), keys).shards(known or []))


def read(shard: Shard, start: int = 0, stop: int | None = None, keys: tuple[str, ...] | None = None) -> list[RawSample]:
    work = WorkRange(shard.id, start, shard.images if stop is None else stop)
    return list(FolderSource(shard.path, keys).read(shard, work))


def files(shard: Shard) -> list[str]:
    return list(shard.state["files"])


def test_images_come_sorted_with_their_captions_and_metadata(tmp_path: Path) -> None:
    fill(tmp_path, "b/2.v1.JPG", "b/2.v1.txt", "b/2.v1.json", "a.png", "b/2.v2.jpg", "notes.md")
    (shard,) = shards(tmp_path)
    assert [(s.position, s.key, s.image, dict(s.extras)) for s in read(shard)] == [
        (0, "a", b"a.png", {}),
        (1, "b/2.v1", b"b/2.v1.JPG", {"txt": b"b/2.v1.txt", "json": b"b/2.v1.json"}),
        (2, "b/2.v2", b"b/2.v2.jpg", {}),
    ]
    assert (shard.images, shard.bytes) == (3, 25)
    assert read(shard)[1].path == f"{tmp_path}/b/2.v1.JPG"
    assert read(shard, 1, 2) == read(shard)[1:2]


def test_image_key_leaves_masks_out_and_counts_them(tmp_path: Path) -> None:
    fill(tmp_path, "0.jpg", "0.seg.png", "0.txt", "1.jpg")
    (shard,) = shards(tmp_path, keys=("jpg",))
    assert (dict(shard.extensions), dict(shard.left_out)) == ({"jpg": 2}, {"seg.png": 1})
    (masks,) = shards(tmp_path, keys=("seg.png",))
    assert [(s.key, s.extras) for s in read(masks, keys=("seg.png",))] == [("0", {"txt": b"0.txt"})]


def test_a_tree_is_cut_into_shards_and_new_files_come_after_the_known(tmp_path: Path) -> None:
    with patch.object(folder_source, "IMAGES_PER_SHARD", 3):
        first = shards(fill(tmp_path, *(f"{i}.jpg" for i in (1, 3, 5, 7))))
        assert [files(shard) for shard in first] == [["1.jpg", "3.jpg", "5.jpg"], ["7.jpg"]]
        again = shards(fill(tmp_path, "0.jpg", "2.jpg"), first)
    assert again[:2] == first
    assert [(shard.id, files(shard)) for shard in again[2:]] == [(2, ["0.jpg", "2.jpg"])]


def test_relative_and_absolute_spellings_are_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fill(tmp_path, "a.jpg"))
    first = shards(Path())
    assert shards(tmp_path, first) == first and first[0].path == str(tmp_path)


def test_what_is_no_file_is_a_reject_and_blocks_nothing(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "g.jpg", "k" * 251 + ".jpg")
    os.mkfifo(tmp_path / "b.jpg")
    os.mkfifo(tmp_path / "a.txt")
    (tmp_path / "c.jpg").symlink_to("gone.jpg")
    (tmp_path / "d.jpg").symlink_to("d.jpg")
    (tmp_path / "e.jpg").mkdir()
    (tmp_path / "f.jpg").symlink_to("a.jpg")
    (shard,) = shards(tmp_path)
    (tmp_path / "g.jpg").unlink()
    found = {sample.key: sample.damage for sample in read(shard)}
    assert list(found) == ["a", "b", "c", "d", "f", "g", "k" * 251]
    assert [found["a"], found["f"], found["k" * 251]] == [None, None, None]
    assert found["b"] == "cannot be read: not a regular file"
    assert "No such file" in str(found["c"]) and "No such file" in str(found["g"]) and "links" in str(found["d"])


def test_an_io_error_ends_the_run_since_another_may_not_meet_it(tmp_path: Path) -> None:
    (shard,) = shards(fill(tmp_path, "a.jpg", "a.txt"))
    with (
        patch.object(Path, "read_bytes", side_effect=OSError(5, "Input/output error")),
        pytest.raises(DataError, match=r"a\.jpg: Input/output error"),
    ):
        read(shard)


def test_names_that_are_not_utf8_are_read(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.jpg")).write_bytes(b"x")
    (shard,) = shards(tmp_path)
    assert [(sample.key, sample.image) for sample in read(shard)] == [("\udcff\udcfe", b"x")]


def test_a_folder_without_images_or_no_folder_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        shards(tmp_path / "no")
    with pytest.raises(DataError, match="not a folder"):
        shards(fill(tmp_path, "a.png") / "a.png")
    with pytest.raises(DataError, match="no image in it"):
        take_inventory(FolderSource(str(tmp_path), ("jpg",)))
