"""What stands beside tars is an estimate: it shows how far a run is, and never how many images there are."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.images import write_tar
from lora_clip.diagnose.summary import announced_note
from lora_clip.io import remote
from lora_clip.loading import plan as planning
from lora_clip.loading.plan import Inventory, make_plan, take_inventory
from lora_clip.pack.pack import pack
from lora_clip.sources import announced
from lora_clip.sources.announced import Announced
from lora_clip.sources.base import Shard
from lora_clip.sources.tar import TarSource
from lora_clip.types import UNCOUNTED


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first tar is counted before work, as of inputs of many gigabytes."""
    monkeypatch.setattr(planning, "SMALL", -1)


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Four tars of 1, 2, 3 and 4 images."""
    folder = tmp_path / "tars"
    folder.mkdir()
    for number in range(4):
        write_tar(folder / f"{number:05d}.tar", {f"{i}.jpg": b"x" * 900 for i in range(number + 1)})
    return folder


def beside(tars: Path, **files: Any) -> Path:
    for name, content in files.items():
        (tars / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return tars


def planned(tars: Path | str, keys: tuple[str, ...] | None = None) -> tuple[Inventory, planning.Plan]:
    found = take_inventory(TarSource(str(tars), keys))
    return found, make_plan(found, {}, ranks=2, workers=1, batch_size=8)


def expected(tars: Path | str, keys: tuple[str, ...] | None = None) -> list[int | None]:
    found, _ = planned(tars, keys)
    return [found.announced.get(id_) for id_ in found.shards.ids]


SIZES = {f"{number:05d}.tar": number + 1 for number in range(4)}


def test_what_is_announced_is_an_estimate_and_leaves_its_shard_uncounted(tars: Path) -> None:
    found, plan = planned(beside(tars, sizes=SIZES))
    assert [*found.shards.images] == [1, UNCOUNTED, UNCOUNTED, UNCOUNTED] == [*found.targets.values()]
    assert (plan.images, plan.images_each, plan.counted, plan.announced) == (10, (10,), False, True)
    assert plan.bytes == sum(found.shards.bytes) + 10, "the ranks are given what is announced as what is counted"
    assert announced_note(found) is None and list(found.notes) == []


def test_without_numbers_for_all_the_rest_is_estimated_from_their_bytes(tars: Path) -> None:
    found, plan = planned(beside(tars, sizes={"00001.tar": 2}))
    assert found.announced == {1: 2} and not plan.announced and not plan.counted and plan.images > 3
    (tars / "sizes.json").unlink()
    assert not planned(tars)[1].announced


def test_a_wrong_number_is_told_once_both_numbers_are_known_and_the_real_one_counts(tars: Path) -> None:
    found, plan = planned(beside(tars, sizes=SIZES | {"00000.tar": 2, "00002.tar": 0}))
    assert plan.images == 1 + 2 + 1 + 4 and 2 in plan.targets, "what is said to be empty is looked into all the same"
    source = TarSource(str(tars))
    everything = planning.ShardList(planning.counted(source, shard) for shard in found.shards)
    now = found.counted_as(everything, planning.targets_of(everything, None))
    assert now.images == 10
    note = announced_note(now) or ""
    assert f"{tars}/00000.tar holds 1, 2 were announced; {tars}/00002.tar holds 3, 0 were announced." in note


def test_packs_counts_are_announced_where_its_inventory_does_not(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(9):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(b"x" * 700)
    pack(tmp_path / "images", tmp_path / "shards", shards=3)
    assert expected(tmp_path / "shards") == [None] * 3, "counted by their inventory: nothing is announced"
    for tar in (tmp_path / "shards").glob("*.tar"):
        os.utime(tar)
    assert expected(tmp_path / "shards") == [3, 3, 3]
    assert expected(tmp_path / "shards", ("jpg",)) == [None] * 3, "pack counts images of every extension"


def test_img2datasets_statistics_are_read_one_a_shard_up_to_so_many(
    tars: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        beside(tars, **{f"{number:05d}_stats": {"count": 9, "successes": number + 1, "status_dict": {"success": 7}}})
    assert expected(tars) == [1, 2, 3, 4]
    beside(tars, sizes={"00001.tar": 1})
    assert expected(tars) == [1, 1, 3, 4], "sizes.json tells of all and comes first"
    monkeypatch.setattr(announced, "MOST_STATS", 2)
    assert expected(tars) == [1, 1, 3, None]


def test_of_many_broken_files_a_few_are_told(tars: Path) -> None:
    for number in range(4):
        beside(tars, **{f"{number:05d}_stats": {"successes": "many"}})
    found, _ = planned(tars)
    assert not found.announced and len(found.notes) == announced.TOLD + 1
    assert "00000_stats.json is ignored" in found.notes[0]


@pytest.mark.parametrize(
    "content",
    ['{"00001.tar": 2', "[1, 2]", "null", "7", "[" * 100_000, json.dumps(SIZES | {"00001.tar": -1}),
     json.dumps(SIZES | {"00001.tar": True}), json.dumps(SIZES | {"00001.tar": 2.5}), json.dumps(SIZES | {"a": "9"}),
     '{"00001.tar": Infinity}', '{"00001.tar": %s}' % ("9" * 5000)],
    ids=["cut", "list", "null", "number", "deep", "negative", "true", "fraction", "text", "infinite", "endless"],
)  # fmt: skip
def test_what_is_broken_is_passed_over_and_told(tars: Path, content: str) -> None:
    found, plan = planned(beside(tars, sizes=content))
    assert not found.announced and not plan.announced
    (note,) = found.notes
    assert note.startswith(f"{tars}/sizes.json is ignored, it tells no numbers of images")


def test_files_that_are_no_files_too_large_or_of_something_else_are_passed_over(
    tars: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tars / "sizes.json")  # whoever opens it waits for ever
    beside(tars, index={"shardlist": [], "wids_version": 1})
    assert "not a regular file" in planned(tars)[0].notes[0] and len(planned(tars)[0].notes) == 1
    (tars / "sizes.json").unlink()
    monkeypatch.setattr(announced, "MOST_BYTES", 10)
    (note, other) = planned(beside(tars, sizes=SIZES))[0].notes
    assert "larger than" in note and "larger than" in other


def test_more_images_than_fit_into_a_tar_are_not_believed(tars: Path) -> None:
    assert expected(beside(tars, sizes={"00001.tar": 10**18, "00002.tar": 3})) == [None, None, 3, None]


@pytest.fixture
def memory(tars: Path) -> Iterator[str]:
    """The tars behind an address, in fsspec's memory."""
    import fsspec

    files = fsspec.filesystem("memory")
    for tar in tars.glob("*.tar"):
        files.pipe(f"/beside/{tar.name}", tar.read_bytes())
    yield "memory://beside"
    files.rm("/beside", recursive=True)


def test_remote_numbers_are_read_once_where_a_listing_shows_them(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    opened: list[str] = []
    real = remote.open_remote

    def counting(address: str) -> Any:
        opened.append(address)
        return real(address)

    monkeypatch.setattr(remote, "open_remote", counting)
    assert expected(memory) == [None] * 4 and not any("json" in address for address in opened)
    fsspec.filesystem("memory").pipe("/beside/sizes.json", json.dumps(SIZES).encode())
    fsspec.filesystem("memory").pipe("/beside/00003_stats.json", b'{"successes": 9}')
    assert expected(memory) == [1, 2, 3, 4]
    assert opened.count("memory://beside/sizes.json") == 1 and not any("stats" in address for address in opened)
    assert expected(f"{memory}/0000{{0..3}}.tar") == [None] * 4, "nothing listed the folder, so nothing is asked for"


def test_a_shard_without_anything_beside_it_has_none_announced(tmp_path: Path) -> None:
    assert Announced().of(Shard(0, "tar", str(tmp_path / "gone" / "0.tar"), UNCOUNTED, 10**6, "")) is None
