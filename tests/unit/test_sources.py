"""sources: a registry by kind, what earlier versions recorded of shards, and byte ranges."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.images import jpeg, write_shards
from lora_clip.errors import ConfigError, DataError
from lora_clip.inspection.pictures import Pictures, Small
from lora_clip.inspection.recheck import compare_inputs
from lora_clip.io.ranges import LocalFile, open_ranges
from lora_clip.output import provenance
from lora_clip.sources.base import Shard, open_source, source_of
from lora_clip.sources.folder import FolderSource
from lora_clip.sources.registry import SOURCES, Registration
from lora_clip.sources.tar import TarSource, scan
from lora_clip.types import RawSample, WorkRange


def records(*shards: Shard) -> list[dict[str, object]]:
    """What the job writes into inputs.jsonl, read again."""
    return [json.loads(json.dumps({**shard.to_json(), "wanted": shard.images})) for shard in shards]


def everything(shard: Shard) -> list[RawSample]:
    return list(source_of(shard, None).read(shard, WorkRange(shard.id, 0, shard.images)))


# --- the registry ---


@pytest.mark.parametrize("kind", SOURCES)
def test_a_kind_is_what_its_source_calls_itself_and_its_key_is_a_group(kind: str) -> None:
    module, _, name = SOURCES[kind].location.partition(":")
    assert kind == importlib.import_module(module).KIND
    assert all(
        hasattr(getattr(importlib.import_module(module), name), method) for method in ("shards", "read", "check")
    )
    assert (Path(__file__).parents[2] / f"conf/data/{SOURCES[kind].key}.yaml").is_file()


def test_the_key_that_is_set_says_which_source() -> None:
    assert open_source({"shards": ["a"], "folder": None, "image_key": "jpg"}) == TarSource(["a"], ("jpg",))
    assert open_source({"shards": None, "folder": "b"}) == FolderSource("b", None)


def test_a_source_is_one_line_and_is_asked_for_by_name_in_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "disc", Registration("disc", "/path/to/disc", "lora_clip.sources.folder:FolderSource"))
    assert open_source({"disc": "x"}) == FolderSource("x", None)
    with pytest.raises(
        ConfigError, match=r"none of data.shards, data.folder, .*, data.disc are set.*data=disc data.disc=/path"
    ):
        open_source({})
    with pytest.raises(ConfigError, match=r"both of data.folder and data.disc are set"):
        open_source({"folder": "x", "disc": "y"})
    with pytest.raises(
        ConfigError, match=r"\(without data=…, the demo's shards are\): type data=shards .*folder=/path"
    ):
        open_source({"folder": "x", "shards": "y"})


def test_sources_that_are_not_used_are_not_imported() -> None:
    """So what a source needs may be missing where it is not used."""
    code = "import sys, lora_clip.sources.base; print([m for m in sys.modules if m.startswith('lora_clip.sources.')])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "lora_clip.sources.tar" not in found and "lora_clip.sources.folder" not in found


def test_a_shard_of_an_unknown_source_is_named_and_verify_goes_on(tmp_path: Path) -> None:
    shard = Shard(0, "laserdisc", "/x.ld", 3, 9, "d")
    with pytest.raises(DataError, match=r"/x\.ld was read by a source 'laserdisc'"):
        source_of(shard, None)
    problems, notes = compare_inputs(records(shard), None)
    assert problems == [] and "laserdisc" in notes[0]


# --- what verify asks ---


def test_check_tells_an_unchanged_tar_from_another(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, [3])
    shard = scan(0, str(path), None)
    assert compare_inputs(records(shard), None) == ([], [])
    write_shards(tmp_path, [4])
    assert compare_inputs(records(shard), None)[0] == [f"shard 0: {path} has 4 images now, or others; 3 were embedded"]
    path.unlink()
    problems, notes = compare_inputs(records(shard), None)
    assert problems == [] and "No such file" in notes[0]


def test_check_counts_the_files_that_a_folder_has_lost(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.jpg").write_bytes(jpeg())
    shards = list(FolderSource(str(tmp_path)).shards([]))
    assert compare_inputs(records(*shards), None) == ([], [])
    (tmp_path / "b.jpg").unlink()
    assert compare_inputs(records(*shards), None)[0] == [f"shard 0: {tmp_path} has lost 1 of 3 files"]


def test_a_link_that_led_nowhere_from_the_start_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nothing.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "a.jpg")
    shards = list(FolderSource(str(tmp_path)).shards([]))
    assert compare_inputs(records(*shards), None) == ([], [])
    (tmp_path / "a.jpg").unlink()
    assert compare_inputs(records(*shards), None)[0] == [f"shard 0: {tmp_path} has lost 2 of 3 files"]


# --- outputs of format 1 ---

TAR_LINE = (
    '{"id": 4, "path": "%s", "images": 3, "bytes": 2400, "digest": "%s", "stamp": [%d, %d], "extensions": {"jpg": 3}, '
    '"left_out": {}, "landmarks": [[0, 0]], "scattered": false, "files": null, "wanted": 2}'
)
FOLDER_LINE = (
    '{"id": 5, "path": "%s", "images": 2, "bytes": 6, "digest": '
    '"0000", "stamp": [0, 0], "extensions": {"jpg": 2}, "left_out": {"png": 1}, "landmarks": [], "scattered": false, '
    '"files": ["a.jpg", "d/b.jpg"], "wanted": 2}'
)


def test_a_tar_of_format_1_is_read_and_not_scanned_again(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, [3])
    status = path.stat()
    line = TAR_LINE % (path, scan(0, str(path), None).digest, status.st_size, status.st_mtime_ns)
    shard = Shard.from_json(json.loads(line))
    assert (shard.id, shard.kind, shard.images, dict(shard.extensions)) == (4, "tar", 3, {"jpg": 3})
    assert shard.state == {"stamp": [status.st_size, status.st_mtime_ns], "seek_points": "0:0", "scattered": False}
    assert [sample.extras["txt"] for sample in everything(shard)] == [b"picture 0", b"picture 1", b"picture 2"]
    (again,) = TarSource(str(tmp_path)).shards([shard])
    assert again is shard
    assert compare_inputs([json.loads(line)], None) == ([], [])


def test_a_folder_of_format_1_is_read(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name in ("a.jpg", "d/b.jpg", "new.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    line = json.loads(FOLDER_LINE % tmp_path)
    shard = Shard.from_json(line)
    assert (shard.id, shard.kind, shard.state) == (5, "folder", {"files": ["a.jpg", "d/b.jpg"]})
    assert [sample.image for sample in everything(shard)] == [b"a.jpg", b"d/b.jpg"]
    known, new = FolderSource(str(tmp_path)).shards([shard])
    assert known is shard and (new.id, new.state) == (6, {"files": ["new.jpg"]})
    assert compare_inputs([line], None) == ([], [])


def test_pictures_of_an_output_of_format_1_are_found(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, [3])
    line = TAR_LINE % (path, "d", 1, 1)
    provenance.write_fingerprint(tmp_path, {"image_key": None})
    (tmp_path / "inputs.jsonl").write_text(line + "\n")
    assert Pictures.of(tmp_path).image(4, 2, "000002").size == (32, 24)


def test_outputs_of_one_input_share_small_pictures(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, [3])
    line = TAR_LINE % (path, "d", 1, 1)
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        provenance.write_fingerprint(tmp_path / name, {"image_key": None})
        (tmp_path / name / "inputs.jsonl").write_text(line + "\n")
    small: Small = {}
    first = Pictures.of(tmp_path / "one", small).thumbnail(4, 2, 16, "000002")
    Path(path).unlink()
    other = Pictures.of(tmp_path / "other", small)
    assert first is not None and other.thumbnail(4, 2, 16, "000002") == first
    assert other.thumbnail(4, 2, 16, "another key") is None and other.thumbnail(4, 1, 16) is None
    assert Pictures.of(tmp_path / "other").thumbnail(4, 2, 16, "000002") is None, "nobody else keeps any"


def test_a_record_that_lacks_something_is_an_error_with_a_way_out() -> None:
    with pytest.raises(DataError, match=r"shard 7 lacks 'images'.*another output_dir"):
        Shard.from_json({"id": 7, "kind": "tar", "path": "x"})


# --- byte ranges ---


def test_ranges_are_read_from_anywhere_by_path_or_address(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"0123456789")
    for address in (str(path), f"file://{path}"):
        with open_ranges(address) as file:
            assert (file.size, file.stamp) == (10, (10, path.stat().st_mtime_ns))
            assert [file.read_at(7, 2), file.read_at(0, 3), file.read_at(8, 99), file.read_at(99, 1)] == [
                b"78",
                b"012",
                b"89",
                b"",
            ]


def test_ranges_longer_than_the_system_reads_at_once_come_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_bytes(b"0123456789")
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, length, offset: pread(descriptor, min(length, 3), offset))
    with LocalFile(str(tmp_path / "x")) as file:
        assert file.read_at(1, 8) == b"12345678" and file.read_at(5, 99) == b"56789"


def test_a_file_that_became_shorter_is_an_error_and_not_short_data(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"0123456789")
    with open_ranges(str(path)) as file:
        os.truncate(path, 4)
        assert file.read_at(0, 4) == b"0123"
        with pytest.raises(OSError, match="became shorter"):
            file.read_at(2, 6)


def test_what_is_not_there_or_of_an_unknown_scheme_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_ranges(str(tmp_path / "no"))
    with pytest.raises(ConfigError, match=r"gopher:// is not read"):
        open_ranges("gopher://host/key")
