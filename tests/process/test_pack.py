"""pack: every image of a tree in exactly one shard, the same bytes whatever happens on the way."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander

from helpers.jobs import COMMAND, PATIENCE
from lora_clip.app.command import main
from lora_clip.errors import ConfigError, DataError, OutputError, StorageError
from lora_clip.io import process
from lora_clip.pack import write
from lora_clip.pack.listing import ListedFile, list_images
from lora_clip.pack.pack import pack
from lora_clip.pack.pool import interrupts_held
from lora_clip.pack.report import next_command
from lora_clip.pack.split import default_shards, split
from lora_clip.pack.write import stored_size, tar_size, write_shard
from lora_clip.sources.names import image_name


def save_image(path: Path, seed: int, side: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.frombytes("RGB", (side, side), random.Random(seed).randbytes(side * side * 3)).save(path)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 images in nested folders; every third has a caption, every fifth a json. To be read only."""
    root = tmp_path_factory.mktemp("tree") / "images"
    for i in range(23):
        path = root / f"c{i % 3}" / f"{i:03d}.v2.{('jpg', 'png', 'BMP')[i % 3]}"
        save_image(path, i, side=8 + i)
        if i % 3 == 0:
            path.with_suffix(".txt").write_text(f"caption {i}")
        if i % 5 == 0:
            path.with_suffix(".json").write_text(f'{{"number": {i}}}')
    return root


@pytest.fixture(scope="module")
def packed(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree in 4 shards, as two workers wrote them. To be read only."""
    shards = tmp_path_factory.mktemp("packed") / "shards"
    pack(tree, shards, shards=4, workers=2)
    return shards


@pytest.fixture
def images(tree: Path, tmp_path: Path) -> Path:
    """The tree, to be changed."""
    return Path(shutil.copytree(tree, tmp_path / "images"))


@pytest.fixture(scope="module")
def slow_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 links to one image of 1 MB: enough for a run to be hit in its middle. To be read only."""
    root = tmp_path_factory.mktemp("slow")
    save_image(root.with_name("large.bmp"), 0, side=600)
    for i in range(120):
        (root / f"{i:03d}.bmp").symlink_to(root.with_name("large.bmp"))
    return root


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "pack", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


def start(*arguments: object) -> subprocess.Popen[bytes]:
    command = [*COMMAND, "pack", *map(str, arguments)]
    # A test run in the background ignores Ctrl-C, and so would what it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    finally:
        signal.signal(signal.SIGINT, before)


def finish(process: subprocess.Popen[bytes]) -> tuple[str, str]:
    output, errors = process.communicate(timeout=PATIENCE)
    return output.decode(), errors.decode()  # carriage returns as they are: text mode would make them lines


def wait_for_shard(shards: Path, number: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not (shards / f"{number:06d}.tar").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def stored(shards: Path) -> list[tuple[str, bytes]]:
    return [entry for path in sorted(shards.glob("*.tar")) for entry in stored_in(path)]


def stored_in(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path, encoding="utf-8", errors="surrogateescape") as tar:
        for info in tar:
            file = tar.extractfile(info)
            assert file is not None
            yield info.name, file.read()


def webdataset_samples(shards: Path) -> Iterator[dict[str, Any]]:
    """What webdataset makes of the tars; its own opening of files leaves them open, which is an error here."""
    for path in sorted(shards.glob("*.tar")):
        with path.open("rb") as stream:
            yield from group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}]))


def names(shards: Path) -> list[str]:
    return [name for name, _ in stored(shards)]


# What is packed


def test_every_file_is_stored_untouched_and_sorted_with_the_image_before_its_extras(tree: Path, packed: Path) -> None:
    found = stored(packed)
    expected = {str(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    assert len(found) == len(expected) and dict(found) == expected
    pictures = [name for name, _ in found if image_name(name)]
    assert pictures == sorted(pictures)
    for before, name in pairwise(names(packed)):
        assert image_name(name) or before.rpartition(".")[0] == name.rpartition(".")[0]


def test_headers_hold_nothing_of_the_machine(packed: Path) -> None:
    with tarfile.open(packed / "000000.tar") as tar:
        for info in tar:
            assert (info.mtime, info.uid, info.gid, info.mode, info.uname, info.gname) == (0, 0, 0, 0o644, "", "")
            assert info.isreg()


def test_webdataset_reads_the_shards_back(tree: Path, packed: Path) -> None:
    samples = list(webdataset_samples(packed))
    assert len(samples) == 23
    for sample in samples:
        number = int(sample["__key__"].rpartition("/")[2])
        extension = f"v2.{('jpg', 'png', 'bmp')[number % 3]}"
        (original,) = tree.rglob(f"{number:03d}.v2.[jpB][pnM][gP]")
        assert sample[extension] == original.read_bytes()
        assert sample.get("v2.txt") == (f"caption {number}".encode() if number % 3 == 0 else None)
        assert ("v2.json" in sample) == (number % 5 == 0)


def test_two_images_of_one_key_are_both_packed_with_the_extras_once_beside_the_first(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.m.jpg", "b.jpg"):
        save_image(tmp_path / "images" / name, 0)
    (tmp_path / "images" / "a.txt").write_text("both")
    pack(tmp_path / "images", tmp_path / "shards", shards=3)
    assert names(tmp_path / "shards") == ["a.jpg", "a.txt", "a.png", "a.m.jpg", "b.jpg"]
    assert list(dict(stored_in(tmp_path / "shards" / "000000.tar"))) == ["a.jpg", "a.txt", "a.png"]


def test_what_is_not_packed_is_counted_and_named(images: Path, tmp_path: Path) -> None:
    (images / "c0" / "lonely.txt").write_text("no image")
    (images / "README.md").write_text("hello")
    (images / "gone.jpg").symlink_to("nowhere")
    (images / "itself.jpg").symlink_to("itself.jpg")
    os.mkfifo(images / "pipe.jpg")
    (images / "c1" / "up").symlink_to("..")
    (images / "c3").symlink_to("c1")
    result = run(images, tmp_path / "shards")
    assert result.returncode == 0, result.stderr
    assert "left out: 1 captions or json without an image, such as 'c0/lonely.txt'" in result.stdout
    assert "left out: 1 other files, such as 'README.md'" in result.stdout
    assert "left out: 3 broken links and special files, such as 'gone.jpg'" in result.stdout
    assert "left out: 1 links back to a folder that holds them, such as 'c1/up'" in result.stdout
    assert "left out: 1 folders that have another name here too, such as 'c3'" in result.stdout
    assert sum(image_name(name) is not None for name in names(tmp_path / "shards")) == 23


def test_linked_folders_are_followed(images: Path, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "linked").symlink_to(images / "c0")
    report = pack(tmp_path / "tree", tmp_path / "shards")
    assert report.shards[0].images == 8
    assert all(name.startswith("linked/") for name in names(tmp_path / "shards"))


def test_shards_inside_images_do_not_pack_themselves_and_say_which_images_they_hold(images: Path) -> None:
    first = pack(images, images / "shards", shards=2)
    save_image(images / "shards" / "sub" / "stray.png", 0)
    again = pack(images, images / "shards")
    assert (again.written, again.shards) == ([], first.shards)
    assert again.left_out == {"images inside SHARDS": ["shards/sub/stray.png"]}


def test_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/images/\xff\xfe/\xe9t\xe9.jpg"
    save_image(Path(os.fsdecode(raw)), 1)
    pack(tmp_path / "images", tmp_path / "shards")
    assert [os.fsencode(name) for name in names(tmp_path / "shards")] == [b"\xff\xfe/\xe9t\xe9.jpg"]
    (sample,) = webdataset_samples(tmp_path / "shards")
    assert os.fsencode(sample["__key__"]) == b"\xff\xfe/\xe9t\xe9"


file_names = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), max_size=50)
paths = st.lists(file_names.map(lambda name: f"d{name}"), min_size=1, max_size=4).map("/".join)


@settings(max_examples=30, deadline=None)
@example({"d" * length: b"around 100 characters a name moves to an extended header" for length in range(90, 100)})
@given(st.dictionaries(paths, st.binary(max_size=2000), min_size=1, max_size=6))
def test_any_name_and_any_bytes_come_back_and_the_size_is_foreseen(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    root = tmp_path_factory.mktemp("any")
    members, expected = [], []
    for number, (name, data) in enumerate(files.items()):
        relative = f"{number}/{name}.jpg"
        (root / relative).parent.mkdir(parents=True)
        (root / relative).write_bytes(data)
        members.append(ListedFile(relative, len(data)))
        expected.append((relative, data))
    assert list_images(root, root / "none").samples == [(member,) for member in sorted(members)]
    write_shard(root, root / "one.tar", members)
    assert list(stored_in(root / "one.tar")) == expected
    assert (root / "one.tar").stat().st_size == tar_size(members)
    with tarfile.open(root / "one.tar", encoding="utf-8", errors="surrogateescape") as tar:
        last = tar.getmembers()[-1]
        end = last.offset_data + -(-last.size // 512) * 512
    assert end == sum(map(stored_size, members))


# How many shards


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=200), st.data())
def test_a_split_covers_everything_once_in_order_and_in_balance(sizes: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(sizes)))
    cuts = split(sizes, count)
    assert len(cuts) == count + 1 and cuts[0] == 0 and cuts[-1] == len(sizes)
    runs = [sizes[a:b] for a, b in pairwise(cuts)]
    assert all(runs)
    for shard in runs:
        assert sum(shard) <= sum(sizes) / count + max(sizes) or len(shard) == 1


@pytest.mark.parametrize(
    ("images", "size", "cores", "shards"),
    [
        (1, 1, 64, 1),
        (100, 10**7, 64, 2),
        (29_104, 3 * 10**9, 8, 30),
        (29_104, 3 * 10**9, 128, 128),
        (1_000, 10**10, 8, 40),
        (6_400, 10**6, 64, 64),
    ],
)
def test_the_default_number_of_shards(images: int, size: int, cores: int, shards: int) -> None:
    assert default_shards(images, size, cores) == shards


def test_a_later_run_keeps_the_number_of_shards_on_another_machine(tmp_path: Path) -> None:
    for i in range(150):
        save_image(tmp_path / "images" / f"{i}.bmp", i, side=2)
    with patch.object(process, "cores", return_value=3):
        assert len(pack(tmp_path / "images", tmp_path / "shards").shards) == 3
    reference = contents(tmp_path / "shards")
    (tmp_path / "shards" / "000001.tar").unlink()
    with patch.object(process, "cores", return_value=1):
        assert [shard.name for shard in pack(tmp_path / "images", tmp_path / "shards").written] == ["000001.tar"]
    assert contents(tmp_path / "shards") == reference


# The same bytes


def test_the_bytes_do_not_depend_on_workers_or_time(images: Path, packed: Path, tmp_path: Path) -> None:
    for path in images.rglob("*.*"):
        os.utime(path, (1, 1))
        path.chmod(0o600)
    assert run(images, tmp_path / "w1", "--shards", 4, "--workers", 1).returncode == 0
    assert contents(tmp_path / "w1") == contents(packed)
    pack(images, tmp_path / "w4", shards=4, workers=4)
    assert contents(tmp_path / "w4") == contents(packed)
    assert len(contents(packed)) == 5


def test_the_same_command_again_finds_nothing_to_do_and_touches_nothing(images: Path, tmp_path: Path) -> None:
    first = run(images, tmp_path / "shards", "--shards", 3)
    assert "packed 23 images, 8 captions, 5 json in 3 shards" in first.stdout
    next_line = f" embed data=shards data.shards={tmp_path / 'shards'} "
    assert next_line in first.stdout and "100%" in first.stderr
    before = {path: path.stat() for path in (tmp_path / "shards").iterdir()}
    second = run(images, tmp_path / "shards")
    assert second.returncode == 0 and second.stderr == ""
    assert second.stdout.startswith("nothing to do:") and next_line in second.stdout
    after = {path: path.stat() for path in (tmp_path / "shards").iterdir()}
    assert {path: (s.st_ino, s.st_mtime_ns) for path, s in before.items()} == {
        path: (s.st_ino, s.st_mtime_ns) for path, s in after.items()
    }


def test_a_shard_of_the_wrong_size_is_written_again_and_that_is_said(tree: Path, packed: Path, tmp_path: Path) -> None:
    shards = Path(shutil.copytree(packed, tmp_path / "shards"))
    os.truncate(shards / "000002.tar", 1000)
    report = pack(tree, shards)
    assert [shard.name for shard in report.written] == ["000002.tar"]
    assert "1 shard of the wrong size written again" in str(report)
    assert contents(shards) == contents(packed)


# Interruptions


@pytest.fixture(scope="module")
def reference(slow_images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Checksums of an undisturbed run (hash() of bytes: a hundred megabytes is not kept in memory twice)."""
    shards = tmp_path_factory.mktemp("reference")
    pack(slow_images, shards, shards=40)
    return checksums(shards)


def checksums(folder: Path) -> dict[str, int]:
    return {path.name: hash(path.read_bytes()) for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("whole_group", [False, True])
def test_after_kill_9_only_what_is_missing_is_written_and_the_end_is_the_same(
    slow_images: Path, tmp_path: Path, reference: dict[str, int], whole_group: bool
) -> None:
    shards = tmp_path / "shards"
    running = start(slow_images, shards, "--shards", 40, "--workers", 2)
    wait_for_shard(shards, 3, running)
    os.killpg(running.pid, signal.SIGSTOP)  # at once: looking for its workers may take longer than all the rest
    workers = psutil.Process(running.pid).children(recursive=True)
    (os.killpg if whole_group else os.kill)(running.pid, signal.SIGKILL)
    os.killpg(running.pid, signal.SIGCONT)
    finish(running)
    assert not psutil.wait_procs(workers, timeout=PATIENCE)[1], "workers outlive their parent"
    for name in ("000039.tar.1.partial", ".000038.tar.1.tmp"):
        (shards / name).write_bytes(b"as a worker leaves it that is killed with its parent")
    finished = {path.name: path.stat().st_ino for path in shards.glob("*.tar")}
    assert 0 < len(finished) < 40
    for path in shards.glob("*.tar"):
        assert hash(path.read_bytes()) == reference[path.name], "a partial tar under its final name"
    result = run(slow_images, shards, "--workers", 2)
    assert result.returncode == 0, result.stderr
    assert f"in {40 - len(finished)} shard" in result.stdout.splitlines()[0]
    assert {name: (shards / name).stat().st_ino for name in finished} == finished
    assert checksums(shards) == reference


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_whole_tars_only_and_says_one_line(
    slow_images: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    shards = tmp_path / "shards"
    running = start(slow_images, shards, "--shards", 40, "--workers", 2)
    wait_for_shard(shards, 1, running)
    os.killpg(running.pid, sent)
    output, errors = finish(running)
    assert running.returncode == 130 and output == ""
    message = "interrupted: finished shards are kept; the same command goes on from there"
    assert errors.rstrip("\n").rpartition("\r")[2] == message and errors.count("\n") == 1, errors
    left = {path.name for path in shards.iterdir()}
    assert "index.json" in left and all(name == "index.json" or name.endswith(".tar") for name in left)
    assert 1 < len(left) < 41
    assert all(len(list(stored_in(path))) == 3 for path in shards.glob("*.tar"))


def test_an_interrupt_never_strikes_inside_the_pool() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    untouched = False
    try:
        with pytest.raises(KeyboardInterrupt), interrupts_held() as held:
            signal.raise_signal(signal.SIGINT)
            untouched = signal.SIGINT in signal.sigpending() & held
    finally:
        signal.signal(signal.SIGINT, before)
    assert untouched


def test_a_file_that_vanishes_on_the_way_is_named(slow_images: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    images = Path(shutil.copytree(slow_images, tmp_path / "images", symlinks=True))
    running = start(images, shards, "--shards", 40, "--workers", 1)
    wait_for_shard(shards, 0, running)
    (images / "119.bmp").unlink()
    _, errors = finish(running)
    assert running.returncode == 2 and "Traceback" not in errors
    assert f"error: '{images / '119.bmp'}' vanished" in errors
    assert not (shards / "000039.tar").exists() and not list(shards.glob("*.tmp"))


@pytest.mark.parametrize("change", [b"", b"shorter", b"longer" * 1000])
def test_a_file_that_changes_on_the_way_is_named(images: Path, tmp_path: Path, change: bytes) -> None:
    members = [member for sample in list_images(images, tmp_path / "shards").samples for member in sample]
    (images / "c0" / "003.v2.jpg").write_bytes(change)
    (tmp_path / "shards").mkdir()
    with pytest.raises(DataError, match=r"003\.v2\.jpg' chang"):
        write_shard(images, tmp_path / "shards" / "000000.tar", members)
    assert listed(tmp_path / "shards") == []


@pytest.mark.parametrize("change", ["shrink", "grow", "touch"])
def test_a_file_that_changes_while_it_is_read_is_named(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a.bmp"
    save_image(path, 0, side=1000)
    size = path.stat().st_size
    read = write._InputFile.read

    def change_then_read(source: write._InputFile, wanted: int = -1, /) -> bytes:
        with path.open("r+b") as file:
            file.truncate({"shrink": size // 2, "grow": size + 1, "touch": size}[change])
        os.utime(path, (2, 2))
        return read(source, wanted)

    with patch.object(write._InputFile, "read", change_then_read), pytest.raises(DataError, match=r"a\.bmp' changed"):
        write_shard(tmp_path, tmp_path / "000000.tar", [ListedFile("a.bmp", size)])
    assert listed(tmp_path) == ["a.bmp"]


def test_a_full_disk_is_one_clear_message_and_no_partial_file(slow_images: Path, tmp_path: Path) -> None:
    result = run_limited(4000, slow_images, tmp_path / "shards", "--shards", 40)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert f"error: cannot write {tmp_path / 'shards'}/0000" in result.stderr and "File too large" in result.stderr
    assert listed(tmp_path / "shards") == ["index.json"]
    pack(slow_images, tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.tar"))) == 40


def run_limited(blocks: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A run that may write files of so many blocks of 512 bytes: what a full disk does, at a known place."""
    command = ["sh", "-c", f'ulimit -f {blocks} && exec "$@"', "sh", *COMMAND, "pack", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


def test_a_disk_that_is_full_from_the_start_leaves_nothing(images: Path, tmp_path: Path) -> None:
    result = run_limited(0, images, tmp_path / "shards")
    assert result.returncode == 2 and result.stderr.startswith("error: cannot write") and "index.json" in result.stderr
    assert listed(tmp_path) == ["images"]


def test_a_folder_that_cannot_be_made_is_a_storage_error(images: Path) -> None:
    with pytest.raises(StorageError, match="cannot make"):
        pack(images, Path("/proc/shards"))


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_worker_ends_the_run_with_one_message(slow_images: Path, tmp_path: Path, sent: signal.Signals) -> None:
    running = start(slow_images, tmp_path / "shards", "--shards", 40, "--workers", 2)
    wait_for_shard(tmp_path / "shards", 1, running)
    worker = next(p for p in psutil.Process(running.pid).children() if "spawn_main" in " ".join(p.cmdline()))
    worker.send_signal(sent)
    _, errors = finish(running)
    assert running.returncode == 2 and "error: a worker process was killed" in errors and "Traceback" not in errors
    assert not list((tmp_path / "shards").glob("*.tmp"))


def test_two_runs_into_one_folder_are_refused(slow_images: Path, tmp_path: Path) -> None:
    running = start(slow_images, tmp_path / "shards", "--shards", 40, "--workers", 1)
    wait_for_shard(tmp_path / "shards", 0, running)
    with pytest.raises(OutputError, match="another job is writing"):
        pack(slow_images, tmp_path / "shards")
    _, errors = finish(running)
    assert running.returncode == 0, errors


# Mistakes


@pytest.fixture
def sigterm() -> Iterator[None]:
    """What SIGTERM does to this process, as it was before a test in which the command says otherwise."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("source", "target", "options", "message"),
    [
        ("nowhere", "shards", [], "no such folder"),
        ("images/c0/000.v2.jpg", "shards", [], "not a folder"),
        ("empty", "shards", [], "no image in"),
        ("texts", "shards", [], "no image in"),
        ("images", "images/c0/000.v2.jpg", [], "is a file"),
        ("images", "images", [], "are both"),
        ("images", "shards", ["--shards", "24"], "at most"),
        ("images", "shards", ["--shards", "0"], "give a number"),
        ("images", "shards", ["--workers", "-1"], "give a number"),
    ],
)
def test_a_mistake_is_one_message_and_leaves_nothing(
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    sigterm: None,
    source: str,
    target: str,
    options: list[str],
    message: str,
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no image")
    before = sorted(tmp_path.rglob("*"))
    assert main(["pack", f"{tmp_path / source}", f"{tmp_path / target}", *options]) == 2
    output, errors = capsys.readouterr()
    assert output == "" and errors.startswith("error: ") and errors.count("\n") == 1 and message in errors
    assert sorted(tmp_path.rglob("*")) == before


def test_a_changed_input_is_refused_and_the_place_is_named(images: Path, packed: Path) -> None:
    before = contents(packed)
    save_image(images / "c2" / "999.png", 1)
    with pytest.raises(DataError, match=r"then 23 images, .* now 24 images, .*sort last.*name a new folder"):
        pack(images, packed)
    (images / "c2" / "999.png").unlink()
    (images / "c1" / "001.v2.png").unlink()
    with pytest.raises(DataError, match=r"now 22 images, .*difference lies in 00000[12].tar, from 'c[01]/"):
        pack(images, packed)
    assert contents(packed) == before


def test_a_changed_input_is_taken_while_there_is_no_tar(images: Path, packed: Path, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    shutil.copy(packed / "index.json", tmp_path / "shards")
    (images / "c1" / "001.v2.png").unlink()
    assert sum(shard.images for shard in pack(images, tmp_path / "shards", shards=2).shards) == 22


def test_another_number_of_shards_is_refused(tree: Path, packed: Path) -> None:
    with pytest.raises(DataError, match=r"--shards 5: .* in 4 shards"):
        pack(tree, packed, shards=5)
    assert pack(tree, packed, shards=4).written == []


def test_a_folder_with_other_tars_or_another_index_is_refused(images: Path, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "train.tar").write_bytes(b"somebody's")
    with pytest.raises(DataError, match=r"other tars, such as 'train\.tar'"):
        pack(images, tmp_path / "shards")
    (tmp_path / "shards" / "train.tar").unlink()
    for content in ('{"wids_version": 1}', "no json", "[]", '{"written_by": "lora_clip pack 0", "shards": []}'):
        (tmp_path / "shards" / "index.json").write_text(content)
        with pytest.raises(DataError, match="was not written by this command"):
            pack(images, tmp_path / "shards")
    assert listed(tmp_path / "shards") == ["index.json"]


def test_numbers_that_cannot_be_are_config_errors(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--workers 0"):
        pack(images, tmp_path / "shards", workers=0)


def test_the_next_command_survives_shell_and_hydra(tmp_path: Path) -> None:
    import shlex

    from hydra.core.override_parser.overrides_parser import OverridesParser

    for name in ("plain", "a b", "{0..3}", "it's", 'say "x"', "a=b,c", "é"):
        command = shlex.split(next_command(tmp_path / name))
        (override,) = OverridesParser.create().parse_overrides([command[-3]])
        value = override.value()
        assert (getattr(value, "text", value), command[-5:-3]) == (str(tmp_path / name), ["embed", "data=shards"])


def test_packing_does_not_wait_for_torch() -> None:
    code = "import sys, lora_clip.pack.pack; print(sorted({'torch', 'numpy', 'webdataset'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
