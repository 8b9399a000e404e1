"""Remote files: what is read is what lies there, whatever the connection does, and nothing that changed meanwhile."""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from helpers.hostile import Request, Web, serving
from helpers.images import tar_bytes, write_shards
from lora_clip.errors import ConfigError, DataError
from lora_clip.io import http, remote, retry, spool
from lora_clip.io.addresses import redacted, redacted_text, remember
from lora_clip.io.ranges import open_ranges
from lora_clip.io.retry import ChangedError, TransientError, pause, persist
from lora_clip.sources.base import Shard, counted
from lora_clip.sources.expand import expand
from lora_clip.sources.tar import TarSource
from lora_clip.types import RawSample, WorkRange

BLOCK = 4096


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 4 kB, short pauses, and no file spooled by another test."""
    monkeypatch.setattr(spool, "BLOCK", BLOCK)
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(retry, "PROGRESS", 512)
    monkeypatch.setattr(remote, "_spools", {})
    monkeypatch.setattr(remote, "_listed", {})


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    """A server of a folder with one file of a little more than ten blocks."""
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "x").write_bytes(random.Random(1).randbytes(10 * BLOCK + 77))
    with serving(tmp_path / "web") as served:
        yield served


def content(web: Web) -> bytes:
    return (web.folder / "x").read_bytes()


def sent(web: Web) -> int:
    """Bytes sent, once nothing is on its way any more."""
    while any(found._coming for found in remote._spools.values()):
        time.sleep(0.01)
    return web.sent.total()


def images_of(found: Iterator[RawSample]) -> list[tuple[int, str, bytes, dict[str, bytes]]]:
    return [(one.position, one.key, one.image, dict(one.extras)) for one in found]


def looked_into(source: TarSource) -> list[Shard]:
    return [counted(source, shard) for shard in source.shards([])]


def read_all(source: TarSource) -> list[list[tuple[int, str, bytes, dict[str, bytes]]]]:
    return [images_of(source.read(shard, WorkRange(shard.id, 0, shard.images))) for shard in looked_into(source)]


# --- ranges ---


def test_ranges_of_a_remote_file_are_its_bytes(web: Web) -> None:
    data, randomly = content(web), random.Random(2)
    with open_ranges(web.url("x")) as file:
        assert file.size == len(data)
        for _ in range(200):
            offset = randomly.randrange(len(data) + 100)
            length = randomly.choice((1, 100, BLOCK, 3 * BLOCK, 10**9))
            assert file.read_at(offset, length) == data[offset : offset + length]


def test_a_file_is_downloaded_once_however_often_it_is_read(web: Web) -> None:
    for _ in range(3):
        with open_ranges(web.url("x")) as file:
            for offset in range(0, file.size, 100):
                file.read_at(offset, 100)
    assert sent(web) == file.size + 3, "and a byte each time to ask for its stamp"
    with open_ranges(web.url("x"), file.stamp) as again:
        assert again.read_at(0, 10) == content(web)[:10]
    assert sent(web) == file.size + 3, "who says what the file is asks for nothing"


def test_who_reads_in_the_middle_fetches_nothing_else(web: Web) -> None:
    with open_ranges(web.url("x")) as file:
        file.read_at(5 * BLOCK + 5, 100)
    assert sent(web) == BLOCK + 1


def test_several_blocks_are_fetched_at_a_time_for_who_reads_on(web: Web) -> None:
    together = threading.Barrier(spool.IN_FLIGHT)

    def trouble(request: Request) -> None:
        if 4 * BLOCK <= request.start < 8 * BLOCK:
            together.wait(20)

    web.trouble = trouble
    with open_ranges(web.url("x")) as file:
        for offset in range(0, file.size, 500):
            assert file.read_at(offset, 500) == content(web)[offset : offset + 500]
    assert not together.broken


def test_blocks_that_do_not_fit_are_dropped_and_fetched_again(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "MOST_BLOCKS", 3)
    with open_ranges(web.url("x")) as file:
        for _ in range(2):
            for offset in range(0, file.size, 700):
                assert file.read_at(offset, 700) == content(web)[offset : offset + 700]
        assert file.read_at(0, 10**9) == content(web)
    assert sent(web) > 2 * file.size


def test_a_full_disk_is_said_to_be_one(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with open_ranges(web.url("x")) as file:
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match=r"temporary file in .*: No space left"):
            file.read_at(0, 10)


def test_a_forked_process_reads_what_is_there_and_fetches_the_rest(web: Web) -> None:
    with open_ranges(web.url("x")) as file:
        file.read_at(3 * BLOCK, BLOCK)
    before = sent(web)
    fork = multiprocessing.get_context("fork")
    with fork.Pool(2) as pool:
        found = pool.map(_whole, [(web.url("x"), file.stamp)] * 2)
    assert found == [content(web)] * 2
    assert sent(web) - before in (file.size - BLOCK, 2 * (file.size - BLOCK)), "by one of the two, or by both"


def _whole(which: tuple[str, Any]) -> bytes:
    with open_ranges(*which) as file:
        return file.read_at(0, file.size)


# --- hostile servers ---


def now_and_then(*troubles: str, seed: int = 0) -> Any:
    """Most requests go wrong, though none for the same block more than six times."""
    randomly, went_wrong = random.Random(seed), Counter[tuple[str, int]]()

    def trouble(request: Request) -> str | None:
        which = (request.name, request.start // BLOCK)
        if went_wrong[which] == 6 or randomly.random() < 0.3:
            return None
        went_wrong[which] += 1
        return randomly.choice(troubles)

    return trouble


@pytest.mark.parametrize(
    "trouble",
    [("drop",), ("truncate",), ("503",), ("429 0",), ("500", "502"), ("drop", "truncate", "503 0", "429")],
    ids="+".join,
)
def test_a_bad_connection_costs_tries_and_nothing_else(web: Web, trouble: tuple[str, ...]) -> None:
    web.trouble = now_and_then(*trouble)
    with open_ranges(web.url("x")) as file:
        for offset in range(0, file.size, 1000):
            assert file.read_at(offset, 1000) == content(web)[offset : offset + 1000]
    assert len(web.requests) > 13, "some had to be made again"


def test_what_arrived_before_a_connection_broke_is_not_fetched_again(web: Web) -> None:
    web.trouble = lambda request: "truncate" if request.start % BLOCK == 0 else None
    with open_ranges(web.url("x")) as file:
        assert file.read_at(0, file.size) == content(web)
    assert sent(web) <= file.size + 2


def test_a_stalled_connection_is_given_up_and_made_again(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "STALLED", 0.3)
    web.trouble = lambda request: "stall" if request.start == 2 * BLOCK else None
    with open_ranges(web.url("x")) as file:
        assert file.read_at(0, file.size) == content(web)


def test_a_connection_that_trickles_is_given_up_too(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "SLOW_SECONDS", 0.0)
    monkeypatch.setattr(http, "SLOWEST", 1e12)
    monkeypatch.setattr(http, "CHUNK", 100)
    monkeypatch.setattr(retry, "PROGRESS", 10**9)
    with open_ranges(web.url("x")) as file, pytest.raises(OSError, match=r"given up after 9 tries.* bytes in 0 s"):
        file.read_at(0, file.size)


@pytest.mark.parametrize("trouble", [None, "truncate"])
def test_a_server_that_knows_no_ranges_sends_the_file_once(web: Web, trouble: str | None) -> None:
    web.ranges = False
    fourth = lambda request: trouble if request.number == 1 else None  # noqa: E731
    web.trouble = fourth
    with open_ranges(web.url("x")) as file:
        for offset in range(0, file.size, 1000):
            assert file.read_at(offset, 1000) == content(web)[offset : offset + 1000]
    assert sent(web) <= (3 if trouble else 2) * file.size


def test_a_server_that_turns_out_to_know_no_ranges(web: Web) -> None:
    with open_ranges(web.url("x")) as file:
        pass
    web.ranges = False
    with open_ranges(web.url("x"), file.stamp) as file:
        assert file.read_at(5 * BLOCK, 3 * BLOCK) == content(web)[5 * BLOCK : 8 * BLOCK]


def test_after_nine_tries_the_error_is_plain_and_the_next_reader_tries_again(web: Web) -> None:
    with open_ranges(web.url("x")) as file:
        web.trouble = lambda request: "503"
        with pytest.raises(OSError, match=r"given up after 9 tries: HTTP 503"):
            file.read_at(0, 10)
        web.trouble = lambda request: None
        assert file.read_at(0, 10) == content(web)[:10]


@pytest.mark.parametrize(
    ("status", "kind", "words"), [("404", FileNotFoundError, "no such file"), ("403", PermissionError, "not allowed")]
)
def test_what_stays_as_it_is_is_asked_for_once(web: Web, status: str, kind: type[OSError], words: str) -> None:
    web.trouble = lambda request: status
    with pytest.raises(kind, match=words):
        open_ranges(web.url("x"))
    assert len(web.requests) == 1


def test_pauses_grow_vary_and_are_the_servers_where_it_says_so() -> None:
    longest = [max(pause(failures) for _ in range(200)) for failures in range(1, 12)]
    assert all(one < other for one, other in pairwise(longest[:7]))
    assert max(longest) <= retry.LONGEST_PAUSE and len({pause(5) for _ in range(9)}) > 1
    assert 7 <= pause(1, 7.0) <= 7.7 and pause(1, 1e9) <= 1.1 * retry.LONGEST_WISH
    assert http._wish("120") == 120 and http._wish("Wed, 21 Oct 2015 07:28:00 GMT") == 0 and http._wish("soon") is None


def test_a_servers_wish_to_wait_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", slept.append)
    answers = iter([TransientError("busy", 3.0), TransientError("busy", 3.0), None])

    def attempt() -> str:
        if error := next(answers):
            raise error
        return "done"

    assert persist(attempt) == "done" and all(3 <= seconds <= 3.3 for seconds in slept) and len(slept) == 2


# --- what changes underneath ---


@pytest.mark.parametrize("tags", [True, False], ids=["etag", "size alone"])
def test_a_file_that_changed_is_an_error_that_says_so(web: Web, tags: bool) -> None:
    web.tags = tags
    with open_ranges(web.url("x")) as file:
        file.read_at(0, 10)
        (web.folder / "x").write_bytes(content(web)[::-1] + (b"" if tags else b"1"))
        with pytest.raises(ChangedError, match=r"not what it was when it was listed: .*(ETag|bytes)"):
            file.read_at(9 * BLOCK, 10)


def test_a_file_that_became_shorter_is_an_error(web: Web) -> None:
    web.tags = False
    with open_ranges(web.url("x")) as file:
        (web.folder / "x").write_bytes(b"short")
        with pytest.raises(ChangedError, match=r"ends before|5 bytes"):
            file.read_at(9 * BLOCK, 10)


# --- tars behind addresses ---


@pytest.fixture
def shards(web: Web) -> list[Path]:
    """Three tars on the server, one of them without an image."""
    return write_shards(web.folder, [7, 0, 60])


def test_images_come_from_addresses_as_from_files(web: Web, shards: list[Path]) -> None:
    there, here = TarSource(web.url("{00000..00002}.tar")), TarSource(str(web.folder))
    assert read_all(there) == read_all(here)
    found = looked_into(there)
    assert [shard.images for shard in found] == [7, 0, 60]
    again = list(map(Shard.from_json, map(Shard.to_json, found)))
    asked = sent(web)
    assert list(there.shards(again)) == found and sent(web) == asked + 3, "unchanged: nothing is read"
    assert not any(map(there.check, again)) and sent(web) == asked + 6, "nor is it for verify"


def test_a_hostile_server_costs_no_image(web: Web, shards: list[Path]) -> None:
    expected = read_all(TarSource(str(web.folder)))
    for seed in range(3):
        web.trouble = now_and_then("drop", "truncate", "503", seed=seed)
        remote._spools.clear()
        assert read_all(TarSource(web.url("{00000..00002}.tar"))) == expected


def test_a_shard_that_changed_since_it_was_planned_is_an_error_and_no_reject(web: Web, shards: list[Path]) -> None:
    source = TarSource([web.url("00000.tar")])
    (shard,) = looked_into(source)
    remote._spools.clear()
    shards[0].write_bytes(tar_bytes({"a.jpg": b"1"}))
    with pytest.raises(DataError, match=r"cannot read shard http://.*00000.tar: it is not what it was"):
        list(source.read(shard, WorkRange(0, 0, 7)))


def test_another_version_of_the_same_names_and_sizes_is_another_shard(web: Web, shards: list[Path]) -> None:
    source = TarSource([web.url("00000.tar")])
    (before,) = looked_into(source)
    data = bytearray(shards[0].read_bytes())
    data[600] ^= 1
    shards[0].write_bytes(data)
    (now,) = source.shards([before])
    assert now.images == before.images and now.digest != before.digest
    assert "others" in str(source.check(before))


def test_single_addresses_lists_and_local_paths_go_together(web: Web, shards: list[Path]) -> None:
    named = [web.url("00002.tar"), str(shards[0]), web.url("{00000..00001}.tar"), web.url("00002.tar")]
    found = expand(named)
    assert found == [web.url("00002.tar"), str(shards[0]), web.url("00000.tar"), web.url("00001.tar")]


@pytest.mark.parametrize(
    ("pattern", "kind", "words"),
    [
        ("http://127.0.0.1:{port}/none.tar", DataError, "none.tar: HTTP 404.*no such file"),
        ("http://127.0.0.1:{port}/*.tar", ConfigError, "cannot be listed: name each file, or give a brace pattern"),
        ("ftp://host/0.tar", ConfigError, r"ftp:// is not read; http://, https://, s3://, gs://, hf://"),
        ("s3://me:word@bucket/0.tar", ConfigError, r"s3://bucket/0.tar: a password in the address is not taken"),
        ("pipe:cat x", ConfigError, "pipe: runs a command"),
    ],
)
def test_what_cannot_be_read_is_said_before_anything_is(
    web: Web, pattern: str, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        expand(pattern.replace("{port}", str(web.port)))


# --- secrets ---


@pytest.mark.parametrize(
    ("address", "written"),
    [
        ("https://h/a.tar", "https://h/a.tar"),
        ("https://me:pass@h:81/a@b.tar", "https://h:81/a@b.tar"),
        ("https://h/a.tar?X-Amz-Signature=1&X-Amz-Date=2", "https://h/a.tar"),
        ("https://h/get?id=7&token=abc", "https://h/get?id=7"),
        ("s3://b/00?.tar", "s3://b/00?.tar"),
        ("hf://datasets/me/x@main/0.tar", "hf://datasets/me/x@main/0.tar"),
        ("/data/me:pass@x?token=1", "/data/me:pass@x?token=1"),
    ],
)
def test_addresses_are_written_without_their_secrets(address: str, written: str) -> None:
    assert redacted(address) == written
    assert redacted_text(f"cannot read '{address}': no") == f"cannot read '{written}': no"


def test_two_addresses_that_only_a_secret_tells_apart_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"two addresses are https://h/get without their secrets"):
        remember(["https://h/get?q=1", "https://h/get?q=2"])


def test_a_password_opens_the_file_and_is_written_nowhere(web: Web, shards: list[Path]) -> None:
    web.password = "me:very secret"
    source = TarSource([web.url("00000.tar?token=hidden", "me:very%20secret@")])
    found = looked_into(source)
    samples = [*source.read(found[0], WorkRange(0, 0, 7))]
    assert len(samples) == 7 and web.requests[-1].query == "token=hidden"
    assert not any(word in f"{found} {samples}" for word in ("secret", "hidden", "me:"))
    web.password = "me:another"
    with pytest.raises(DataError) as failure:
        list(source.shards([]))
    assert not any(word in str(failure.value) for word in ("secret", "hidden", "me:"))


def test_a_password_does_not_follow_to_where_a_server_sends_us(web: Web, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").write_bytes(b"elsewhere")
    with serving(tmp_path / "other") as other:
        web.trouble = lambda request: f"302 {other.url('x')}"
        with open_ranges(web.url("x", "me:secret@")) as file:
            assert file.read_at(0, 99) == b"elsewhere"
        assert other.requests and not any(request.headers.get("Authorization") for request in other.requests)


def test_one_address_that_cannot_be_had_ends_the_listing_of_all(web: Web, shards: list[Path]) -> None:
    web.trouble = lambda request: "403" if request.name == "00001.tar" else None
    with pytest.raises(DataError, match=r"00001.tar: HTTP 403"):
        expand(web.url("{00000..00002}.tar"))


def test_a_host_that_there_is_not_is_told_after_few_tries() -> None:
    with pytest.raises(OSError, match=r"given up after 4 tries: .*[Nn]ame"):
        open_ranges("http://no-such-host.invalid/x.tar")
