"""An output in a bucket: what is made once there, eras, and the bytes of a local output; on moto's S3 and in memory."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from omegaconf import OmegaConf

from helpers.bucket import NAME, s3_bucket
from helpers.commits import files_of, made_by_threads, write
from lora_clip.app.outputs import find_outputs
from lora_clip.errors import ConfigError, OutputError
from lora_clip.io import buckets
from lora_clip.io.objects import Objects
from lora_clip.output import eras
from lora_clip.output.bucket_session import BucketSession
from lora_clip.output.bucketed import BucketStore
from lora_clip.output.eras import Era, newest, take_part
from lora_clip.output.ledger import by_shard
from lora_clip.output.provenance import require_fingerprint
from lora_clip.output.share import RANKS, Share
from lora_clip.output.sharing import DoneByAnotherError, finish_shard
from lora_clip.output.store import Store
from lora_clip.types import WorkRange

LONG = 1000.0


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    with s3_bucket() as bucket:
        yield dict(bucket.environment)


@pytest.fixture(params=["s3", "memory"])
def objects(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Objects:
    """A place in a bucket that no other test uses."""
    if request.param == "s3":
        for name, value in request.getfixturevalue("s3").items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(buckets, "_clients", {})
    else:
        fsspec.filesystem("memory").store.clear()
    return Objects(f"{request.param}://{NAME}/{tmp_path.name}")


def below(objects: Objects) -> list[str]:
    return sorted(name for folder in ("shared", "parts", "ranks", "img_emb") for name in objects.below(folder))


def fresh(root: Path) -> Path:
    root.mkdir(exist_ok=True)
    return root


# --- Objects -----------------------------------------------------------------------------------------------------


def test_of_many_threads_one_makes_the_object(objects: Objects) -> None:
    assert made_by_threads(lambda data: objects.make("a/b", data), 6) == {True: 1, False: 5}
    assert list(objects.listed("a")) == ["b"] and objects.listed("a")["b"].st_size == 1000


def test_a_reply_that_was_lost_is_no_refusal(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    create, calls = objects._create, Counter[str]()

    def lost(path: str, data: bytes) -> bool:
        create_result = create(path, data)
        calls["create"] += 1
        if calls["create"] == 1:
            raise ConnectionResetError("reset")
        return create_result

    monkeypatch.setattr(objects, "_create", lost)
    assert objects.make("x", b"mine") and calls["create"] == 2
    assert not objects.make("x", b"another's") and objects.read("x") == b"mine"


def test_what_is_there_and_what_is_not(objects: Objects) -> None:
    assert objects.read("none") is None and objects.time("none") is None
    assert objects.listed("none") == {} and objects.below("none") == []
    objects.put("f/g/h", b"1")
    objects.put("f/i", b"22")
    assert objects.below("f") == ["f/g/h", "f/i"] and set(objects.listed("f")) == {"i"}
    assert objects.read_all(["f/i", "none", "f/g/h"]) == {"f/i": b"22", "f/g/h": b"1"}
    objects.remove(["f/i", "none"])
    assert objects.below("f") == ["f/g/h"]
    objects.require_make()
    assert objects.below("shared") == []


def test_a_bucket_that_ignores_the_condition_is_refused(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    def ignore(path: str, data: bytes) -> bool:
        buckets.client(objects.address).pipe_file(path, data)
        return True

    monkeypatch.setattr(objects, "_create", ignore)
    with pytest.raises(OutputError, match="ignores If-None-Match"):
        objects.require_make()


# --- Eras --------------------------------------------------------------------------------------------------------


def test_one_is_first_and_others_join_or_replace_it(
    objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, joined = take_part(tmp_path, objects, LONG)
    assert not joined and newest(objects)[0] == 1
    monkeypatch.setattr(eras, "PATIENCE_WITH_FIRST", 0.5)
    with pytest.raises(OutputError, match="is to begin in"):
        take_part(tmp_path, objects, LONG)
    first.begin({"seconds": LONG, "targets": []})
    second, joined = take_part(tmp_path, objects, 1)
    assert joined and (second.me, second.seconds, second.about) == (RANKS, LONG, first.about)
    monkeypatch.setattr(eras, "_lives", lambda *_: False)  # both are frozen
    third, joined = take_part(tmp_path, objects, 0)
    assert not joined and newest(objects)[0] == 2
    for frozen in (first, second):
        as_if_time_passed(frozen)
        assert frozen.is_over and not frozen.claim(0, "0-8") and frozen.is_finished(7)
    third.end()
    assert newest(objects) == (3, "") and [name for name in below(objects) if third.board.id in name] == []  # type: ignore[attr-defined]
    fourth, joined = take_part(tmp_path, objects, LONG)
    assert not joined and newest(objects)[0] == 4 and not fourth.is_over


def as_if_time_passed(share: Share) -> None:
    assert isinstance(share.board, Era)
    share.board._looked = 0.0


def test_of_two_that_begin_at_once_one_is_first(objects: Objects, tmp_path: Path) -> None:
    start, found = threading.Barrier(3), list[tuple[Share, bool]]()

    def begin() -> None:
        start.wait()
        share, joined = take_part(tmp_path, objects, LONG)
        if not joined:
            share.begin({"seconds": LONG})
        found.append((share, joined))

    threads = [threading.Thread(target=begin) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(joined for _, joined in found) == [False, True, True]
    assert sorted(share.me for share, _ in found) == [0, RANKS, 2 * RANKS]


# --- Commits -----------------------------------------------------------------------------------------------------


def opened(objects: Objects, root: Path) -> BucketStore:
    share, joined = take_part(fresh(root), objects, LONG)
    if not joined:
        share.begin({"seconds": LONG})
    return BucketStore(root, share)


def test_two_jobs_write_what_one_writes_into_a_folder(objects: Objects, tmp_path: Path) -> None:
    one, other = opened(objects, tmp_path / "one"), opened(objects, tmp_path / "other")
    before = one.snapshot()
    one.share.count({"id": 4, "images": 8})
    write(one, WorkRange(4, 0, 5))
    with pytest.raises(DoneByAnotherError):
        write(other, WorkRange(4, 0, 5), seed=1)
    assert len(objects.listed("parts")) == 3 and not finish_shard(one, before, 4, 8)
    write(other, WorkRange(4, 5, 8))
    assert finish_shard(other, before, 4, 8) and finish_shard(one, before, 4, 8)
    assert not objects.listed("parts") and one.snapshot().finished[4].stop == 8
    assert one.ledger.counted() == {4: {"id": 4, "images": 8}}
    one.share.end()
    after = opened(objects, tmp_path / "after")
    snapshot = after.snapshot()
    assert snapshot.finished[4].stop == 8 and after.ledger.counted()[4]["images"] == 8
    for kind in snapshot.finished[4].checksums:
        snapshot.locate(kind, snapshot.finished[4])
    alone = Store(fresh(tmp_path / "alone"))
    for work in (WorkRange(4, 0, 5), WorkRange(4, 5, 8)):
        write(alone, work)
    alone.assemble(0, 4, alone.snapshot().committed[4], alone.snapshot())
    assert files_of(after.root) == files_of(alone.root) != {}


def test_the_next_era_goes_on_and_a_frozen_job_harms_nothing(
    objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = opened(objects, tmp_path / "frozen")
    old = frozen.snapshot()
    for work in (WorkRange(0, 0, 6), WorkRange(0, 6, 8), WorkRange(1, 2, 4)):
        write(frozen, work)
    ranges = by_shard(frozen.share.committed(0))[0]
    monkeypatch.setattr(eras, "_lives", lambda *_: False)
    with BucketSession(tmp_path / "next", objects.address, True, LONG) as session:
        assert not session.joined
        session.begin({"base": "x"}, [{"id": 0}])
        before = session.recover({0: 8, 1: 4})
        assert [(entry.start, entry.stop) for entry in before.committed[0]] == [(0, 6), (6, 8)]
        session.open_share({})
        write(frozen, WorkRange(1, 0, 2))  # where nobody looks: it does not know yet how late it is
        as_if_time_passed(frozen.share)
        frozen.assemble(0, 0, ranges, old)  # it was about to, when it was frozen
        with pytest.raises(DoneByAnotherError):
            write(frozen, WorkRange(2, 0, 4))
        assert session.store.snapshot().prefixes() == {0: 8, 1: 0}
        assert finish_shard(session.store, before, 0, 8)
        assert session.store.snapshot().finished[0].stop == 8


def test_what_an_era_has_left_is_swept_and_resume_false_begins_anew(objects: Objects, tmp_path: Path) -> None:
    store = opened(objects, tmp_path / "one")
    write(store, WorkRange(0, 0, 6))
    objects.put("parts/img_emb_000000_000000006-000000008_gone.npy", b"of a killed one")
    objects.put("mine.txt", b"the user's")
    store.share.leave()
    share_id = newest(objects)[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eras, "_lives", lambda *_: False)
        with BucketSession(tmp_path / "two", objects.address, True, LONG) as session:
            session.begin({"base": "x"}, [])
            assert session.recover({0: 8}).prefixes() == {0: 6}
            assert len(objects.listed("parts")) == 3 and not objects.below(f"shared/{share_id}")
        with BucketSession(tmp_path / "three", objects.address, False, LONG) as session:
            session.begin({"base": "y"}, [])
            assert session.snapshot.lines == [] and not objects.listed("parts") and not objects.listed("ranks")
            assert json.loads(objects.read("fingerprint.json") or b"")["base"] == "y"
    assert objects.read("mine.txt") == b"the user's"
    assert not (tmp_path / "three").exists()


def test_what_others_put_there_is_refused(objects: Objects, tmp_path: Path) -> None:
    objects.put("img_emb/0.npy", b"x")
    with pytest.raises(OutputError, match="holds img_emb/ that this program did not write"):
        BucketSession(tmp_path / "root", objects.address, True, LONG).__enter__()


# --- What a bucket cannot have -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ({"output_dir": "https://host/emb"}, "outputs go to a folder, or to s3://, gs://"),
        ({"model": {"base": None, "adapter": ["a", "b"]}}, "takes one adapter"),
        ({"index": True}, "is a bucket: index=false"),
        ({"logger": {"_target_": "x"}}, "logger=null"),
    ],
)
def test_what_a_bucket_cannot_have_is_said(typed: dict[str, object], said: str) -> None:
    given = {"output_dir": "s3://bucket/emb", "index": False, "model": {"base": None, "adapter": None}, **typed}
    with pytest.raises(ConfigError, match=said):
        find_outputs(OmegaConf.create(given))


def test_what_reads_an_output_wants_a_copy() -> None:
    with pytest.raises(OutputError, match="copy it first"):
        require_fingerprint(Path("s3://bucket/emb"))
