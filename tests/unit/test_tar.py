"""tars: every image of a tar once, in order, whatever is broken in it and wherever reading starts."""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import tarfile
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from helpers.images import tar_bytes, write_tar
from lora_clip.errors import ConfigError, DataError
from lora_clip.io.ranges import open_ranges
from lora_clip.sources import tar_headers
from lora_clip.sources.base import Shard, count_extensions
from lora_clip.sources.expand import expand
from lora_clip.sources.seek_points import last_before, text_of
from lora_clip.sources.tar import SEEK_POINT_SPACING, TarSource, scan
from lora_clip.sources.tar_headers import members
from lora_clip.types import UNCOUNTED, RawSample, WorkRange

BLOCK = 512


def small(number: int) -> bytes:
    """Bytes that stand for image `number`; this side of the decoder nobody looks at them."""
    return f"image {number} ".encode() * (1 + number * 37 % 90)


def read(shard: Shard, start: int = 0, stop: int | None = None, keys: tuple[str, ...] | None = None) -> list[RawSample]:
    work = WorkRange(shard.id, start, shard.images if stop is None else stop)
    return list(TarSource(shard.path, keys).read(shard, work))


def scanned(path: Path, data: bytes | None = None, keys: tuple[str, ...] | None = None) -> Shard:
    if data is not None:
        path.write_bytes(data)
    return scan(0, str(path), keys)


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    return tmp_path / "x.tar"


def good(samples: list[RawSample]) -> dict[str, bytes]:
    return {sample.key: sample.image for sample in samples if sample.damage is None}


def damages(samples: list[RawSample]) -> list[str]:
    return [sample.damage for sample in samples if sample.damage is not None]


# --- what is in a sound tar ---


def test_images_captions_and_metadata_come_in_the_order_of_the_tar(tar: Path) -> None:
    members = {"d/b.v1.jpg": b"B", "d/b.v1.txt": b"bee", "d/b.v1.json": b"{}", "d/b.v2.jpg": b"B2", "a.PNG": b"A"}
    shard = scanned(write_tar(tar, {**members, "a.cls": b"7"}))
    samples = read(shard)
    assert [(s.position, s.key, s.image, dict(s.extras)) for s in samples] == [
        (0, "d/b.v1", b"B", {"txt": b"bee", "json": b"{}"}),
        (1, "d/b.v2", b"B2", {}),
        (2, "a", b"A", {}),
    ]
    assert samples[0].path == f"{tar}/d/b.v1.jpg"
    assert (shard.images, shard.bytes, shard.state["scattered"]) == (3, 4, False)


def test_masks_are_images_unless_image_key_leaves_them_out_and_both_are_counted(tar: Path) -> None:
    write_tar(tar, {"0.jpg": b"j", "0.seg.png": b"s", "0.txt": b"t", "1.jpg": b"k", "1.seg.png": b"r"})
    everything, only_jpg, masks = scanned(tar), scanned(tar, keys=("jpg",)), scanned(tar, keys=("seg.png",))
    assert (everything.images, dict(everything.extensions)) == (4, {"jpg": 2, "seg.png": 2})
    assert (dict(only_jpg.extensions), dict(only_jpg.left_out)) == ({"jpg": 2}, {"seg.png": 2})
    assert count_extensions([only_jpg, masks]) == ({"jpg": 2, "seg.png": 2}, {"jpg": 2, "seg.png": 2})
    assert [sample.key for sample in read(masks, keys=("seg.png",))] == ["0", "1"]
    assert read(masks, keys=("seg.png",))[0].extras == {"txt": b"t"}
    assert [sample.extras for sample in read(everything)] == [{"txt": b"t"}, {}, {}, {}]


@pytest.mark.parametrize(
    "names",
    [
        ["a.jpg", "b.jpg", "a.txt", "b.txt"],
        ["a.txt", "b.txt", "a.jpg", "b.jpg"],
        ["a.txt", "b.jpg", "b.txt", "a.jpg"],
        ["a.jpg", "a.txt", "b.jpg", "b.txt"],
    ],
)
def test_a_caption_finds_its_image_wherever_it_stands(tar: Path, names: list[str]) -> None:
    shard = scanned(write_tar(tar, {name: name.encode() for name in names}))
    assert {sample.key: dict(sample.extras) for sample in read(shard)} == {
        "a": {"txt": b"a.txt"},
        "b": {"txt": b"b.txt"},
    }
    assert [sample.extras for sample in read(shard, 1)] == [{"txt": b"b.txt"}] or names[-1] == "a.jpg"


def test_a_second_image_of_a_key_has_the_caption_too_but_each_its_own_where_it_has_one(tar: Path) -> None:
    apart = scanned(write_tar(tar, {"a.jpg": b"1", "a.txt": b"t", "b.jpg": b"2", "a.png": b"3"}))
    assert [dict(sample.extras) for sample in read(apart)] == [{"txt": b"t"}, {}, {"txt": b"t"}]
    doubled = tar_bytes({"a.jpg": b"1", "a.txt": b"first"}) + tar_bytes({"b.jpg": b"2", "b.txt": b"bee"})
    shard = scanned(tar, doubled + tar_bytes({"a.jpg": b"3", "a.txt": b"second"}))
    assert [sample.extras["txt"] for sample in read(shard)] == [b"first", b"bee", b"second"]


def test_names_are_read_in_every_form_and_never_used_as_paths(tar: Path) -> None:
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        names = [
            "x" * 300 + ".jpg",
            "d/" * 120 + "y.jpg",
            "été/日本.jpg",
            "../../up.jpg",
            "/etc/abs.jpg",
            "\udcff\udcfe.jpg",
        ]
        names += ["a\nb.jpg", " .jpg", "~/h.jpg"]
        shard = scanned(write_tar(tar, {name: name.encode("utf-8", "surrogateescape") for name in names}, form))
        assert [sample.key + ".jpg" for sample in read(shard)] == names
        assert good(read(shard)) == {name[:-4]: name.encode("utf-8", "surrogateescape") for name in names}
    assert list(tar.parent.iterdir()) == [tar]


def special(tar: Path, *infos: tarfile.TarInfo) -> Shard:
    with tarfile.open(tar, "w") as file:
        for info in infos:
            file.addfile(info, io.BytesIO(b"\1" * info.size))
    return scanned(tar)


def info(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.size, member.linkname = kind, size, link
    return member


def test_links_and_special_files_are_rejected_by_name_and_folders_are_nothing(tar: Path) -> None:
    shard = special(
        tar,
        info("x.jpg", tarfile.DIRTYPE),
        info("x.jpg/a.jpg", size=7),
        info("b.jpg", tarfile.LNKTYPE, link="x.jpg/a.jpg"),
        info("c.jpg", tarfile.SYMTYPE, link="/etc/passwd"),
        info("d.jpg", tarfile.FIFOTYPE),
        info("notes", tarfile.SYMTYPE, link="x"),
        info("e.txt", tarfile.SYMTYPE, link="x"),
    )
    samples = read(shard)
    assert [sample.key for sample in samples] == ["x.jpg/a", "b", "c", "d"]
    assert ["hard link" in damages(samples)[0], "symbolic link" in damages(samples)[1]] == [True, True]
    assert "special file" in damages(samples)[2]
    assert (shard.images, shard.bytes, dict(shard.extensions)) == (4, 7, {"jpg": 1})


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 1024, b"\0" * 10240, tar_bytes({}), tar_bytes({"a.txt": b"t", "b.cls": b"1"})],
    ids=["zero bytes", "two blocks", "twenty blocks", "empty tar", "no image"],
)
def test_a_tar_without_images_has_no_positions(tar: Path, data: bytes) -> None:
    shard = scanned(tar, data)
    assert (shard.images, shard.bytes, shard.extensions, shard.state["seek_points"]) == (0, 0, {}, "")
    assert read(shard) == []


def test_concatenated_tars_are_read_to_the_end(tar: Path) -> None:
    parts = [tar_bytes({f"{i}.jpg": small(i), f"{i}.txt": b"t"}) for i in range(3)]
    shard = scanned(tar, parts[0] + parts[1] + b"\0" * (3 << 20) + parts[2])
    assert good(read(shard)) == {str(i): small(i) for i in range(3)}


# --- what is broken ---


def numbered(count: int) -> dict[str, bytes]:
    return {f"{i:04d}.jpg": small(i) for i in range(count)}


def headers(data: bytes) -> list[int]:
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        return [member.offset for member in file.getmembers()]


def test_a_corrupt_header_costs_one_position_and_the_rest_is_kept(tar: Path) -> None:
    data = bytearray(tar_bytes(numbered(9)))
    data[headers(bytes(data))[4] : headers(bytes(data))[4] + BLOCK] = b"\xaa" * BLOCK
    shard = scanned(tar, bytes(data))
    samples = read(shard)
    assert [sample.position for sample in samples] == list(range(9))
    assert good(samples) == {key[:-4]: image for key, image in numbered(9).items() if key != "0004.jpg"}
    assert "damaged tar" in damages(samples)[0] and samples[4].damage
    assert damages(read(shard, 4, 5)) == damages(samples)


def test_a_damaged_body_is_left_to_the_decoder(tar: Path) -> None:
    data = bytearray(tar_bytes(numbered(3)))
    data[headers(bytes(data))[1] + BLOCK + 2] ^= 0xFF
    samples = read(scanned(tar, bytes(data)))
    assert damages(samples) == [] and samples[1].image != small(1) and samples[2].image == small(2)


@pytest.mark.parametrize("cut", [1, 100, 511, 512, 513, 700])
def test_a_truncated_tar_loses_only_its_end_and_says_so(tar: Path, cut: int) -> None:
    data = tar_bytes({"a.jpg": small(1), "b.jpg": b"x" * 1000, "c.jpg": small(3)})
    shard = scanned(tar, data[: headers(data)[1] + cut])
    samples = read(shard)
    assert good(samples) == {"a": small(1)} and len(damages(samples)) == 1
    assert ("truncated" in damages(samples)[0]) and shard.bytes == len(small(1))


def test_a_tar_cut_between_members_is_whole_as_far_as_it_goes(tar: Path) -> None:
    data = tar_bytes(numbered(4))
    assert list(good(read(scanned(tar, data[: headers(data)[2]])))) == ["0000", "0001"]


def test_a_truncated_member_of_unknown_kind_counts_since_images_may_be_lost_with_it(tar: Path) -> None:
    data = tar_bytes({"a.jpg": small(1), "a.txt": b"t" * 2000})
    samples = read(scanned(tar, data[: headers(data)[1] + BLOCK + 100]))
    assert len(samples) == 2 and "2000 bytes announced, 100 there" in damages(samples)[0]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"hello, this is no tar" * 100, "not a tar archive"),
        (b"<html>", "not a tar archive"),
        (gzip.compress(tar_bytes({"a.jpg": random.Random(0).randbytes(9000)})), "gzip data: unpack it first"),
        (b"\x28\xb5\x2f\xfd" + bytes(range(256)) * 8, "zstandard data"),
    ],
    ids=["text", "html", "gzip", "zstandard"],
)
def test_what_is_not_a_tar_is_one_reject_that_says_what_it_is(tar: Path, data: bytes, reason: str) -> None:
    samples = read(scanned(tar, data))
    assert len(samples) == 1 and reason in damages(samples)[0]


def with_checksum(header: bytearray) -> bytes:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def header_of(member: tarfile.TarInfo, size_field: bytes | None = None) -> bytes:
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    if size_field is not None:
        block[124:136] = size_field
    return with_checksum(block)


@pytest.mark.parametrize("size", [b"\xff" * 11 + b"\x9c", b"\xff" * 9 + b"\xf0\0\0", b"\x80" + b"\x7f" * 11])
def test_a_member_of_negative_or_endless_size_is_damage(tar: Path, size: bytes) -> None:
    data = header_of(info("bad.jpg"), size) + tar_bytes({"a.jpg": b"A"})
    shard = scanned(tar, data)
    assert len(damages(read(shard))) == 1 and shard.bytes <= 1
    assert list(read(shard)) == read(shard)


def test_a_negative_size_in_a_pax_header_is_damage(tar: Path) -> None:
    member = info("bad.jpg")
    member.pax_headers = {"size": "-600"}
    data = member.tobuf(tarfile.PAX_FORMAT) + tar_bytes({"a.jpg": b"A"})
    samples = read(scanned(tar, data))
    assert good(samples)["a"] == b"A" and samples[-1].key == "a"


@pytest.mark.slow
def test_a_chain_of_extended_headers_costs_no_stack_and_an_endless_one_no_memory(tar: Path) -> None:
    link = header_of(info("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=4)) + b"name".ljust(BLOCK, b"\0")
    shard = scanned(tar, link * 800 + tar_bytes({"a.jpg": b"A", "b.jpg": b"B"}))
    assert good(read(shard)) == {"b": b"B"} and "too long or too many" in str(damages(read(shard))[0])
    endless = header_of(info("././@LongLink", tarfile.GNUTYPE_LONGNAME), b"%011o\0" % (1 << 32))
    assert good(read(scanned(tar, endless + tar_bytes({"a.jpg": b"A"})))) == {"a": b"A"}


def test_a_file_without_a_name_is_one_reject(tar: Path) -> None:
    shard = scanned(tar, b"\0" * BLOCK + header_of(info("", size=0)) + tar_bytes({"a.jpg": b"A"}))
    assert ["no name" in damages(read(shard))[0], dict(shard.extensions)] == [True, {"jpg": 1}]


def test_a_sparse_file_is_one_reject(tar: Path) -> None:
    samples = read(scanned(tar, header_of(info("s.jpg", tarfile.GNUTYPE_SPARSE)) + tar_bytes({"a.jpg": b"A"})))
    assert "sparse file" in damages(samples)[0] and good(samples) == {"a": b"A"}


def damaged_tars() -> Iterator[bytes]:
    members = {"d/a.jpg": small(3), "d/a.txt": b"cap", "y" * 150 + ".png": b"", "m.json": b"{}", "b.v2.jpg": small(8)}
    members |= {"\udcff.gif": small(5), "0.seg.png": small(1), "b.v2.json": b'{"url": "u"}'}
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        kept = {name: data for name, data in members.items() if form != tarfile.USTAR_FORMAT or len(name) < 100}
        yield tar_bytes(kept, form) + tar_bytes({"last.jpg": small(2)}, form)


SOUND = list(damaged_tars())


def damage(data: bytes, random: random.Random, edits: list[str]) -> bytes:
    """Flip, cut, double, erase; some headers get a right checksum again, so that the damage is believed."""
    changed = bytearray(data)
    for edit in edits:
        at = random.randrange(len(changed))
        EDITS[edit](changed, at, at // BLOCK * BLOCK, random)
        if len(changed) < 3:
            break
    return bytes(changed)


def flip(data: bytearray, at: int, block: int, random: random.Random) -> None:
    data[at] = random.randrange(256)


def believed_flip(data: bytearray, at: int, block: int, random: random.Random) -> None:
    if block + BLOCK <= len(data):
        byte = block + random.choice([*range(100), *range(124, 136), 156, 156, 156])
        data[byte] = random.choice([0, 32, 48, 55, 128, 255, *b"12567LKSxg"])
        data[block : block + BLOCK] = with_checksum(data[block : block + BLOCK])


def cut(data: bytearray, at: int, block: int, random: random.Random) -> None:
    del data[max(3, at) :]


def drop(data: bytearray, at: int, block: int, random: random.Random) -> None:
    del data[at : at + random.choice([1, 7, BLOCK, 3 * BLOCK])]


def erase(data: bytearray, at: int, block: int, random: random.Random) -> None:
    data[block : block + BLOCK] = b"\0" * len(data[block : block + BLOCK])


def double(data: bytearray, at: int, block: int, random: random.Random) -> None:
    data[block:block] = data[block : block + random.choice([BLOCK, 4 * BLOCK])]


EDITS = {edit.__name__: edit for edit in (flip, believed_flip, cut, drop, erase, double)}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(SOUND),
    st.randoms(use_true_random=False),
    st.lists(st.sampled_from(sorted(EDITS)), min_size=1, max_size=6),
)
def test_scan_and_read_agree_on_any_bytes(data: bytes, random: random.Random, edits: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.tar"
        for keys in (None, ("jpg",)):
            shard = scanned(path, damage(data, random, edits), keys)
            samples = read(shard, 0, shard.images + 99, keys)
            assert [sample.position for sample in samples] == list(range(shard.images))
            middle = random.randrange(shard.images + 1)
            assert read(shard, middle, None, keys) == samples[middle:]
            assert sum(shard.extensions.values()) == sum(sample.damage is None for sample in samples)
            assert shard.bytes == sum(len(sample.image) for sample in samples)


def summed(header: bytes) -> bytes:
    """A header with its right sum."""
    return header[:148] + b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * 32) + header[156:]


changes = st.lists(
    st.tuples(
        st.integers(0, BLOCK - 1),
        st.sampled_from([*b"\0 07/89\x80\xff", *range(256)]),
        st.booleans(),
    ),
    max_size=3,
)


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(["a.jpg", "d/é.jpg", "\udcff.png", "x" * 99, "x" * 100, "d" * 90 + "/" + "x" * 60, "a/"]),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.sampled_from([tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE]),
    st.integers(0, 1500), changes,
)  # fmt: skip
def test_what_is_read_quickly_is_what_tarfile_reads(
    name: str, form: Literal[0, 1, 2], kind: bytes, size: int, changes: list[tuple[int, int, bool]]
) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.size, entry.mtime = kind, size, 1_700_000_000
    data = bytearray(entry.tobuf(form, "utf-8", "surrogateescape") + bytes(1024) + tar_bytes({"after.jpg": b"a"}))
    for at, value, mended in changes:
        data[at] = value
        if mended:
            data[:BLOCK] = summed(bytes(data[:BLOCK]))
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        with open_ranges(file.name) as ranges:
            found = list(members(ranges))
        with patch.object(tar_headers, "_plain_at", return_value=None), open_ranges(file.name) as ranges:
            assert found == list(members(ranges))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_ordinary_files_are_read_without_tarfile(tar: Path, form: Literal[0, 1, 2]) -> None:
    write_tar(tar, numbered(20), form)
    with patch.object(tar_headers, "_header_at", wraps=tar_headers._header_at) as asked:
        assert scanned(tar).images == 20
    assert asked.call_count == 1, "at the end mark"


# --- where reading starts ---


@pytest.mark.parametrize(
    "captions", ["at the end", *(pytest.param(one, marks=pytest.mark.slow) for one in ("beside", "in front", "none"))]
)
def test_a_range_is_the_same_as_a_slice_of_the_whole_from_any_start(tar: Path, captions: str) -> None:
    count = 3 * SEEK_POINT_SPACING + 17
    images = {f"{i:04d}.jpg": b"%d" % i for i in range(count)}
    texts = {f"{i:04d}.txt": b"t%d" % i for i in range(count) if captions != "none"}
    members = images | texts
    if captions in ("beside", "in front"):
        order = sorted(members, key=lambda name: (name[:4], name.endswith("txt") == (captions == "beside")))
        members = {name: members[name] for name in order}
    shard = scanned(write_tar(tar, members, tarfile.USTAR_FORMAT))
    assert re.findall(r"(\d+):", shard.state["seek_points"]) == ["0", "256", "512", "768"]
    assert shard.state["scattered"] == (captions == "at the end")
    whole = read(shard)
    assert [sample.image for sample in whole] == list(images.values())
    for start in (*range(0, count, 61), 255, 256, 257, 511, 512, 513, 768, count - 1, count):
        stop = min(count, start + 70)
        assert read(shard, start, stop) == whole[start:stop]


def test_seek_points_stay_in_step_where_many_images_share_a_key_or_damage(tar: Path) -> None:
    data = b"".join(tar_bytes({f"same.{ext}": b"%d" % i})[:1024] for i in range(300) for ext in ("jpg", "png"))
    data += b"\xaa" * BLOCK + tar_bytes(numbered(600))
    shard = scanned(tar, data)
    whole = read(shard)
    assert shard.images == len(whole) == 1201
    for start in range(0, 1201, 97):
        assert read(shard, start) == whole[start:]


def test_a_shard_survives_json(tar: Path) -> None:
    import json

    shard = scanned(write_tar(tar, numbered(300) | {"x.seg.png": b"s"}), keys=("jpg",))
    assert Shard.from_json(json.loads(json.dumps(shard.to_json()))) == shard


def test_a_tar_whose_seek_points_were_recorded_as_pairs_is_read_from_them(tar: Path) -> None:
    shard = scanned(write_tar(tar, numbered(600)))
    pairs = [[*map(int, point.split(":"))] for point in shard.state["seek_points"].split()]
    assert len(pairs) == 3 and shard.state["seek_points"] == text_of(pairs)
    older = Shard.from_json({**shard.to_json(), "state": {**shard.state, "seek_points": pairs}})
    assert older == shard and isinstance(older.state["seek_points"], str)
    wrong = Shard.from_json(
        {**shard.to_json(), "state": {**shard.state, "seek_points": [pairs[0], [256, pairs[2][1]]]}}
    )
    assert read(wrong, 300, 301) != read(shard, 300, 301), "reading starts at the points, not at the tar's start"


@pytest.mark.parametrize(
    ("text", "position", "found"),
    [("", 9, (0, 0)), ("0:512", 0, (0, 512)), ("3:7 256:90", 2, (0, 0)), ("0:0 256:90 512:180", 256, (256, 90)),
     ("0:0 256:90 512:180", 511, (256, 90)), ("0:0 256:90 512:180", 10**9, (512, 180))],
)  # fmt: skip
def test_the_last_seek_point_before_a_position(text: str, position: int, found: tuple[int, int]) -> None:
    assert last_before(text, position) == found


# --- which files ---


def test_an_unchanged_tar_is_not_scanned_again_and_a_changed_one_is(tar: Path) -> None:
    shard = scanned(write_tar(tar, numbered(3)))
    assert scan(0, str(tar), None, shard) is shard
    write_tar(tar, numbered(4))
    assert scan(0, str(tar), None, shard).images == 4
    write_tar(tar, dict(zip(numbered(4), [b"Z", *list(numbered(4).values())[1:]], strict=True)))
    assert scan(0, str(tar), None, shard).digest != shard.digest


def test_new_tars_get_ids_after_the_known_ones_which_keep_theirs(tmp_path: Path) -> None:
    for name in ("b", "d"):
        write_tar(tmp_path / f"{name}.tar", numbered(1))
    first = list(TarSource(str(tmp_path)).shards([]))
    assert [(shard.id, Path(shard.path).stem) for shard in first] == [(0, "b"), (1, "d")]
    for name in ("a", "c"):
        write_tar(tmp_path / f"{name}.tar", numbered(1))
    again = list(TarSource(str(tmp_path)).shards(first))
    assert [(shard.id, Path(shard.path).stem) for shard in again] == [(0, "b"), (1, "d"), (2, "a"), (3, "c")]
    (tmp_path / "b.tar").unlink()
    assert [shard.id for shard in TarSource(str(tmp_path)).shards(again)] == [1, 2, 3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("00000", "00001", "00002", "sub/00003"):
        write_tar(tmp_path / f"{name}.tar", {})
    (tmp_path / "00000.json").write_text("{}")
    return tmp_path


def names(patterns: object) -> list[str]:
    return [Path(path).stem for path in expand(patterns)]


def test_shards_are_a_folder_a_path_a_glob_braces_or_a_list_each_once(folder: Path) -> None:
    everything = ["00000", "00001", "00002", "00003"]
    assert names(str(folder)) == names(f"file://{folder}") == names(f"{folder}/") == everything
    assert names(f"{folder}/00001.tar") == ["00001"]
    assert names(f"{folder}/*.tar") == everything[:3] and names(f"{folder}/**/*.tar") == everything
    assert names(f"{folder}/{{00002,00000}}.tar") == ["00002", "00000"]
    assert names(f"{folder}/{{00000..00002}}.tar") == everything[:3]
    assert names(f"{folder}/s*") == ["00003"]
    assert names([f"{folder}/00002.tar", str(folder)]) == ["00002", "00000", "00001", "00003"]
    assert names(OmegaConf.create([f"{folder}/00001.tar", f"{folder}/*1.tar"])) == ["00001"]
    assert names(f"{folder}/00000.tar::{folder}/00002.tar") == ["00000", "00002"]


def test_one_file_under_several_names_is_one_shard(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "zz.tar").symlink_to("00000.tar")
    monkeypatch.chdir(folder)
    spellings = ["00000.tar", f"{folder}/00000.tar", f"{folder}/sub/../00000.tar", f"{folder}//00000.tar", "zz.tar"]
    assert expand(spellings) == [f"{folder}/00000.tar"]
    assert names(".") == ["00000", "00001", "00002", "00003"]


def test_a_name_with_magic_characters_is_a_path_where_there_is_such_a_file(tmp_path: Path) -> None:
    write_tar(tmp_path / "a[1]{x,y}*.tar", {})
    assert names(f"{tmp_path}/a[1]{{x,y}}*.tar") == ["a[1]{x,y}*"]


def test_a_long_brace_pattern_is_no_file_name(tmp_path: Path) -> None:
    for i in range(60):
        write_tar(tmp_path / f"shard-{i:04d}.tar", {})
    many = ",".join(f"shard-{i:04d}" for i in range(60))
    assert len(expand(f"{tmp_path}/{{{many}}}.tar")) == 60


@pytest.mark.parametrize(
    ("pattern", "error", "message"),
    [
        ("pipe:touch {0}/executed", ConfigError, "runs a command"),
        ("{0}/00000.tar::pipe:touch {0}/executed", DataError, "no such file"),
        ("ftp://bucket/{{0..3}}.tar", ConfigError, "ftp:// is not read"),
        ("{0}/no.tar", DataError, "no such file"),
        ("{0}/no*.tar", DataError, "matches no file"),
        ("{0}/{{00000..00009}}.tar", DataError, "00003.tar and 6 more of the 10"),
        ("{0}/empty", DataError, "without a .tar"),
        (["{0}/00000.tar", "{0}/no.tar"], DataError, "no such file"),
        ([], ConfigError, "empty list"),
        ("{0}/\0.tar", DataError, "no such file"),
        (7, DataError, "no such file"),
    ],
)
def test_what_cannot_be_read_is_refused_and_nothing_is_run(
    folder: Path, pattern: object, error: type[Exception], message: str
) -> None:
    (folder / "empty").mkdir()
    filled = [p.format(folder) for p in pattern] if isinstance(pattern, list) else pattern
    filled = filled.format(folder) if isinstance(filled, str) else filled
    with pytest.raises(error, match=message):
        expand(filled)
    assert not (folder / "executed").exists()


def test_listing_tars_reads_nothing_of_them_and_counting_one_reads_its_headers(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", numbered(3))
    source = TarSource(str(tmp_path))
    (listed,) = source.shards([])
    assert (listed.images, listed.bytes, listed.digest) == (UNCOUNTED, path.stat().st_size, "")
    assert source.count(listed) == scan(0, str(path), None)
    assert Shard.from_json(json.loads(json.dumps(listed.to_json()))) == listed
    assert list(source.shards([listed])) == [listed], "an earlier run that did not come to it knows no more"
    write_tar(path, numbered(4))
    with pytest.raises(DataError, match="was written to since this job began"):
        source.count(listed)


def test_a_dead_link_among_the_tars_is_an_error_not_one_shard_less(folder: Path) -> None:
    (folder / "00004.tar").symlink_to("gone.tar")
    with pytest.raises(DataError, match=r"00004\.tar"):
        list(TarSource(str(folder)).shards([]))


def test_a_tar_that_is_gone_when_it_is_read_is_a_data_error(tar: Path) -> None:
    shard = scanned(write_tar(tar, numbered(2)))
    tar.unlink()
    with pytest.raises(DataError, match=r"cannot read shard .*x\.tar"):
        read(shard)


def test_shards_are_scanned_one_by_one_as_they_are_asked_for(folder: Path) -> None:
    (folder / "00002.tar").unlink()
    (folder / "00002.tar").symlink_to("gone.tar")
    assert len(list(islice(TarSource(str(folder)).shards([]), 2))) == 2
