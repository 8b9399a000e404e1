"""The inventory that packing leaves: tars that nobody touched since are planned unread, every other one is scanned."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.images import tar_bytes, write_tar
from lora_clip.io.ranges import READERS, LocalFile
from lora_clip.pack.pack import pack
from lora_clip.sources import base
from lora_clip.sources.base import Shard
from lora_clip.sources.inventory import WRITTEN_BY, note
from lora_clip.sources.tar import TarSource, scan

MEMBERS = {"a.v1.jpg": b"A" * 700, "a.v1.txt": b"first", "b.v2.seg.PNG": b"B", "c.jpg": b"", "c.json": b"{}"}
"""Images and what belongs to them: packing does not look into them."""


class Counted(LocalFile):
    """A file that counts how often it is read."""

    reads = 0

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes [offset, offset + length), fewer only beyond `size`."""
        Counted.reads += 1
        return super().read_at(offset, length)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> type[Counted]:
    monkeypatch.setitem(READERS, "file", Counted)
    monkeypatch.setattr(Counted, "reads", 0)
    return Counted


def planned(folder: Path, keys: tuple[str, ...] | None = None) -> list[Shard]:
    source = TarSource(str(folder), keys)
    return [base.counted(source, shard) for shard in source.shards([])]


def scanned(folder: Path, keys: tuple[str, ...] | None = None) -> list[Shard]:
    return [scan(number, str(path), keys) for number, path in enumerate(sorted(folder.glob("*.tar")))]


def write_index(folder: Path, content: Any) -> None:
    """An index.json that is surely newer than the tars: a file system's clock may stand still between two files."""
    (folder / "index.json").write_text(json.dumps(content))
    newest = max(path.stat().st_ctime_ns for path in folder.iterdir())
    os.utime(folder / "index.json", ns=(newest + 1, newest + 1))


def inventory_of(folder: Path) -> dict[str, Any]:
    notes = {Path(shard.path).name: note(shard) for shard in scanned(folder)}
    return {"written_by": WRITTEN_BY, "shards": [], "inventory": notes}


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """One tar with an inventory, as packing leaves it."""
    folder = tmp_path / "packed"
    folder.mkdir()
    write_tar(folder / "0.tar", MEMBERS)
    write_index(folder, inventory_of(folder))
    return folder


def test_what_was_packed_is_planned_unread_and_as_a_scan_would_find_it(tmp_path: Path, counted: type[Counted]) -> None:
    for number in range(300):
        for name, data in MEMBERS.items() if number < 3 else [(f"{number:03d}.jpg", b"x")]:
            write_file(tmp_path / "images" / str(number) / name, data)
    pack(tmp_path / "images", tmp_path / "shards", shards=2, workers=2)
    found = planned(tmp_path / "shards")
    assert counted.reads == 0
    assert found == scanned(tmp_path / "shards") and counted.reads > 0
    assert sum(shard.images for shard in found) == 306
    link = tmp_path / "link"
    link.symlink_to("shards")
    counted.reads = 0
    assert [shard.path for shard in planned(link)] == [f"{link}/00000{number}.tar" for number in (0, 1)]
    assert counted.reads == 0


names = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "a.v1", "d/a", "é", "\udcff", "x" * 120]),
        st.sampled_from(["jpg", "PNG", "seg.png", "txt", "json", "cls", "\udcfe.jpg"]),
    ).map(".".join),
    max_size=12,
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(names)
def test_a_note_says_what_a_scan_says_whatever_the_names_and_their_order(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tars = Path(folder)
        (tars / "0.tar").write_bytes(b"".join(tar_bytes({name: name.encode(errors="replace")}) for name in names))
        write_index(tars, inventory_of(tars))
        expected = scanned(tars)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(READERS, "file", Unreadable)
            assert planned(tars) == expected


class Unreadable(LocalFile):
    """A file that may be opened, not read."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Nothing."""
        raise AssertionError("read")


def other_members(tar: Path) -> None:
    """Other names in as many bytes."""
    before = tar.stat()
    tar.write_bytes(tar_bytes({name.replace(".v", ".w"): data for name, data in MEMBERS.items()}))
    assert tar.stat().st_size == before.st_size


def other_members_dated_back(tar: Path) -> None:
    """The time of the last change as it was; that of the file's entry cannot be set."""
    before = tar.stat()
    other_members(tar)
    os.utime(tar, ns=(before.st_atime_ns, before.st_mtime_ns))


def an_older_file_by_link(tar: Path) -> None:
    """A link to a file of that size that was there before."""
    tar.unlink()
    tar.symlink_to(tar.parent.parent / "older.tar")


def an_older_file_moved(tar: Path) -> None:
    """A file of that size that was there before, moved into its place."""
    (tar.parent.parent / "older.tar").replace(tar)


def longer(tar: Path) -> None:
    """One more image behind the end, dated back."""
    before = tar.stat()
    with tar.open("ab") as file:
        file.write(tar_bytes({"z.jpg": b"Z"}))
    os.utime(tar, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "change", [other_members, other_members_dated_back, an_older_file_by_link, an_older_file_moved, longer]
)
def test_a_tar_that_was_touched_after_packing_is_scanned(
    packed: Path, counted: type[Counted], change: Callable[[Path], None]
) -> None:
    older = packed.parent / "older.tar"
    older.write_bytes((packed / "0.tar").read_bytes())
    other_members(older)
    write_index(packed, inventory_of(packed))
    wait_for_tick(packed)
    (before,) = planned(packed)
    change(packed / "0.tar")
    counted.reads = 0
    (found,) = planned(packed)
    assert counted.reads > 0 and [found] == scanned(packed) and found.digest != before.digest


def wait_for_tick(folder: Path) -> None:
    """Until the file system's clock has moved on from when index.json was written."""
    probe = folder.parent / "probe"
    probe.touch()
    while probe.stat().st_ctime_ns <= (folder / "index.json").stat().st_mtime_ns:
        time.sleep(0.001)
        probe.touch()


def test_a_change_at_the_very_time_of_index_json_is_seen(packed: Path, counted: type[Counted]) -> None:
    changed = (packed / "0.tar").stat().st_ctime_ns
    os.utime(packed / "index.json", ns=(changed, changed))
    counted.reads = 0
    assert planned(packed) and counted.reads > 0


@pytest.mark.parametrize(
    "content",
    [
        {"wids_version": 1, "shardlist": []},
        {"written_by": "lora_clip pack 0", "inventory": {"0.tar": {"size": 10240}}},
        {"written_by": WRITTEN_BY, "shards": []},
        {"written_by": WRITTEN_BY, "inventory": ["0.tar"]},
        {"written_by": WRITTEN_BY, "inventory": {"0.tar": 7}},
        {"written_by": WRITTEN_BY, "inventory": {"0.tar": {"size": 10240}}},
        {"written_by": WRITTEN_BY, "inventory": {"0.tar": {"size": 10240, "state": [], "images": 7}}},
        {"written_by": WRITTEN_BY, "inventory": {"1.tar": {"size": 10240}}},
        [],
        None,
    ],
)
def test_an_index_that_is_not_packs_or_holds_no_inventory_is_passed_by(packed: Path, content: Any) -> None:
    assert (packed / "0.tar").stat().st_size == 10240
    write_index(packed, content)
    assert planned(packed) == scanned(packed)


def test_an_index_that_is_no_file_is_passed_by(packed: Path) -> None:
    (packed / "index.json").write_text("no json")
    assert planned(packed) == scanned(packed)
    (packed / "index.json").unlink()
    assert planned(packed) == scanned(packed)
    os.mkfifo(packed / "index.json")  # whoever opens it waits for ever
    assert planned(packed) == scanned(packed)


def test_other_images_than_were_noted_are_asked_for_by_image_key(packed: Path) -> None:
    write_index(packed, inventory_of(packed))
    assert planned(packed, ("v2.seg.png",)) == scanned(packed, ("v2.seg.png",))
    assert planned(packed, ("v2.seg.png",))[0].images == 1


def test_what_an_earlier_run_recorded_comes_first(packed: Path, counted: type[Counted]) -> None:
    known = Shard.from_json(planned(packed)[0].to_json() | {"id": 7})
    counted.reads = 0
    assert list(TarSource(str(packed)).shards([known])) == [known]
    assert counted.reads == 0


def test_an_inventory_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "images" / "a.jpg", b"A")
    pack(tmp_path / "images", tmp_path / "shards")
    (tmp_path / "shards" / "000000.tar").touch()
    monkeypatch.setattr("lora_clip.io.lock.NAME", "no/folder")
    assert pack(tmp_path / "images", tmp_path / "shards").written == []


def test_packing_again_takes_the_inventory_that_is_missing_or_out_of_date(
    tmp_path: Path, counted: type[Counted]
) -> None:
    for name, data in MEMBERS.items():
        write_file(tmp_path / "images" / name, data)
    pack(tmp_path / "images", tmp_path / "shards", shards=2, workers=1)
    complete = (tmp_path / "shards" / "index.json").read_text()
    content = json.loads(complete)
    assert list(content.pop("inventory")) == ["000000.tar", "000001.tar"]
    for spoil in (lambda index: index.write_text(json.dumps(content)), lambda index: os.utime(index, (1, 1))):
        spoil(tmp_path / "shards" / "index.json")
        assert pack(tmp_path / "images", tmp_path / "shards").written == []
        assert (tmp_path / "shards" / "index.json").read_text() == complete
        counted.reads = 0
        assert planned(tmp_path / "shards") and counted.reads == 0


def write_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
