"""Objects by fsspec: on a real S3 server of this machine, and in fsspec's own memory."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from huggingface_hub import constants

from helpers.bucket import NAME, Bucket, s3_bucket
from helpers.hub import Hub, hub
from helpers.images import write_shards
from lora_clip import extras
from lora_clip.errors import ConfigError, DataError
from lora_clip.io import buckets, remote, retry, spool
from lora_clip.io.ranges import open_ranges
from lora_clip.io.retry import ChangedError
from lora_clip.io.stamps import stamp_from
from lora_clip.sources.base import counted
from lora_clip.sources.expand import expand
from lora_clip.sources.tar import TarSource
from lora_clip.types import WorkRange


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16 kB, short pauses, and no file spooled by another test."""
    monkeypatch.setattr(spool, "BLOCK", 16384)
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(remote, "_spools", {})
    monkeypatch.setattr(remote, "_listed", {})


@pytest.fixture(scope="module")
def server() -> Iterator[Bucket]:
    with s3_bucket() as bucket:
        yield bucket


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Three tars, one of them without an image."""
    return write_shards(tmp_path / "shards", [7, 0, 30])


@pytest.fixture(params=["s3", "hf", "memory"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that puts a file into a store and returns its address, for each kind of store."""
    if request.param == "s3":
        bucket = request.getfixturevalue("server")
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        yield bucket.put
        return
    if request.param == "hf":
        with hub() as served:
            visit(served, monkeypatch)
            yield lambda key, content: served.put(key, content if isinstance(content, bytes) else content.read_bytes())
        return
    files = fsspec.filesystem("memory")
    files.store.clear()

    def put(key: str, content: bytes | Path) -> str:
        files.pipe_file(f"{NAME}/{key}", content if isinstance(content, bytes) else content.read_bytes())
        return f"memory://{NAME}/{key}"

    yield put
    files.store.clear()


def visit(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", served.address)
    template = served.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(buckets, "_clients", {})


def samples(source: TarSource) -> list[Any]:
    return [
        (shard.id, sample.position, sample.key, sample.image, dict(sample.extras))
        for shard in (counted(source, shard) for shard in source.shards([]))
        for sample in source.read(shard, WorkRange(shard.id, 0, shard.images))
    ]


def folder_with(store: Any, shards: list[Path], name: str) -> str:
    addresses = [store(f"{name}/{shard.name}", shard) for shard in shards]
    store(f"{name}/notes.txt", b"no tar")
    return addresses[0].rpartition("/")[0]


def test_a_folder_a_glob_braces_and_addresses_name_the_same_images(store: Any, shards: list[Path]) -> None:
    folder = folder_with(store, shards, "same")
    expected = samples(TarSource([*map(str, shards)]))
    names = [f"{folder}/{shard.name}" for shard in shards]
    for pattern in (folder, f"{folder}/", f"{folder}/*.tar", f"{folder}/{{00000..00002}}.tar", names, [folder, *names]):
        assert expand(pattern) == names
        assert samples(TarSource(pattern)) == expected


def test_many_names_in_a_folder_are_one_listing(store: Any, shards: list[Path]) -> None:
    for number in range(12):
        address = store(f"many/{number:02d}.tar", shards[1])
    folder = address.rpartition("/")[0]
    assert len(expand(f"{folder}/{{00..11}}.tar")) == 12
    with pytest.raises(DataError, match=r"many/12.tar: no such file"):
        expand(f"{folder}/{{00..12}}.tar")


@pytest.mark.parametrize(
    ("name", "words"),
    [("none.tar", "none.tar: no such file"), ("none/*.tar", "matches no file"), ("texts", "without a .tar file")],
)
def test_what_is_not_there_is_said(store: Any, name: str, words: str) -> None:
    folder = store("texts/x.txt", b"x").rpartition("/texts")[0]
    with pytest.raises(DataError, match=words):
        expand(f"{folder}/{name}")


@pytest.mark.parametrize("store", ["s3", "memory"], indirect=True)
def test_an_object_that_changes_underneath_is_an_error_that_says_so(store: Any) -> None:
    address = store("changing", bytes(9 * 16384))
    with open_ranges(address) as file:
        file.read_at(0, 10)
        store("changing", b"1" * 9 * 16384)
        with pytest.raises(ChangedError, match="not what it was when it was listed"):
            file.read_at(7 * 16384, 10)
        store("changing", b"shorter")
        with pytest.raises(ChangedError, match="not what it was when it was listed"):
            file.read_at(5 * 16384, 10)


def test_a_file_of_the_hub_is_read_from_the_commit_in_which_it_was_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    with hub() as served:
        visit(served, monkeypatch)
        address = served.put("shards/0.tar", bytes(9 * 16384))
        with open_ranges(address) as file:
            file.read_at(0, 10)
            served.put("shards/0.tar", b"1" * 40 * 16384)
            assert file.read_at(7 * 16384, 10) == bytes(10)
            remote._spools.clear()
        with open_ranges(address, file.stamp) as again, pytest.raises(ChangedError, match="not what it was"):
            again.read_at(0, 10)
        served.requests.clear()
        with open_ranges(address) as now:
            assert now.read_at(0, now.size) == b"1" * now.size
    asked = [path for path in served.requests if "/resolve/" not in path]
    assert len(asked) < 16 < now.size / 16384, "a shard costs a few questions, and not each of its blocks"


def test_a_forked_process_makes_a_client_of_its_own(store: Any) -> None:
    address = store("forked", bytes(range(256)) * 100)
    with open_ranges(address) as file:
        file.read_at(0, 10)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        data = pool.apply_async(_whole, (address, file.stamp)).get(60)
    assert data == bytes(range(256)) * 100


def _whole(address: str, stamp: Any) -> bytes:
    with open_ranges(address, stamp) as file:
        return file.read_at(0, file.size)


def test_a_client_that_fails_now_and_then_costs_tries(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    address = store("flaky", bytes(range(256)) * 800)
    tries, kind = Counter[int](), remote.FILES[address.partition(":")[0]]

    class Flaky(kind):  # type: ignore[misc, valid-type]
        def fetch(self, start: int, *rest: Any) -> None:
            tries[start] += 1
            if tries[start] < 4:
                raise (TimeoutError, ConnectionResetError, RuntimeError)[tries[start] - 1]("cut")
            super().fetch(start, *rest)

    monkeypatch.setitem(remote.FILES, address.partition(":")[0], Flaky)
    with open_ranges(address) as file:
        assert file.read_at(0, file.size) == bytes(range(256)) * 800
    assert len(tries) == 13 and set(tries.values()) == {4}


def test_stamps_are_what_each_file_system_says_of_a_version() -> None:
    assert stamp_from({"size": 3, "ETag": '"abc"'}) == (3, "abc")
    assert stamp_from({"size": 3, "lfs": {"sha256": "f0", "size": 3}, "blob_id": "1"}) == (3, "f0")
    assert stamp_from({"size": 3, "blob_id": "1", "lfs": None}) == (3, "1")
    assert stamp_from({"size": 3, "name": "x"}) == (3, "")


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "installed", lambda module: module != "gcsfs")
    with pytest.raises(ConfigError, match=r"gcsfs is not installed: type .*lora-clip\[gs\]"):
        expand("gs://bucket/0.tar")


def test_credentials_are_in_no_message(server: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    for name, value in {**server.environment, **nobody}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(retry, "TRIES", 2)
    monkeypatch.setattr(buckets, "_clients", {})
    with pytest.raises(DataError, match=r"data.shards=s3://photos/x.tar: given up after 2 tries") as failure:
        expand("s3://photos/x.tar")
    assert "sesame" not in str(failure.value) and "key-of-tests" not in str(failure.value)
