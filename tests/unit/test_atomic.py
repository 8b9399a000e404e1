"""files: there whole or not at all, together or not at all, and nothing left of what failed."""

from __future__ import annotations

import hashlib
import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from lora_clip.errors import DataError, StorageError
from lora_clip.io.atomic import HashedFile, Written, leftovers, replace_together, replaced, temporary_name, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_file_keeps_what_it_holds_until_all_of_the_new_one_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_text(path, "old")
    with replaced(path) as file:
        file.write(b"n\xc3")
        file.flush()
        assert path.read_text() == "old" and len(names(tmp_path)) == 2
        file.write(b"\xa9w")
    assert path.read_text() == "néw" and names(tmp_path) == ["a.json"]


def test_what_is_written_is_on_disk_before_it_has_its_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        steps.append("folder" if Path(f"/dev/fd/{descriptor}").is_dir() else f"{os.fstat(descriptor).st_size} bytes")
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        steps.append(f"rename to {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    write_text(tmp_path / "a", "four")
    replace_together({tmp_path / "b": lambda f: f.write(b"12"), tmp_path / "c": lambda f: f.write(b"3")}, tmp_path)  # type: ignore[dict-item]
    assert steps == [
        *("4 bytes", "rename to a", "folder"),
        *("2 bytes", "1 bytes", "rename to b", "rename to c", "folder"),
    ]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), DataError("changed"), KeyboardInterrupt()])
def test_after_an_error_nothing_is_left_and_the_old_file_stays(tmp_path: Path, error: BaseException) -> None:
    write_text(tmp_path / "a", "old")
    wanted = StorageError if isinstance(error, OSError) else type(error)
    with pytest.raises(wanted) as raised, replaced(tmp_path / "a") as file:
        file.write(b"x" * 10**7)
        raise error
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"
    if isinstance(error, OSError):
        assert "cannot write" in str(raised.value) and "No space left" in str(raised.value)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_refusing_file_system_is_one_message(tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os if step == "fsync" else Path, step, full)
    for write in (lambda: write_text(tmp_path / "a", "x"), lambda: _together(tmp_path, tmp_path, "a", "b")):
        with pytest.raises(
            StorageError, match=r"cannot write .*[ab]: No space left.*make room and type the same command"
        ):
            write()
        assert names(tmp_path) == []


def test_a_folder_that_is_not_there_is_the_same_message(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*a: No such file.*put that right and type the same"):
        write_text(tmp_path / "gone" / "a", "x")


def _together(folder: Path, temporaries: Path, *files: str) -> list[Written]:
    def writer(name: str) -> Callable[[BinaryIO], None]:
        return lambda file: file.writelines([name.encode(), b" and more"])

    return replace_together({folder / name: writer(name) for name in files}, temporaries)


def test_files_that_belong_together_are_renamed_when_all_are_written(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    checksums = _together(tmp_path, work, "b", "a")
    stored = [(tmp_path / name).read_bytes() for name in ("b", "a")]
    assert checksums == [(hashlib.sha256(data).hexdigest(), len(data)) for data in stored]
    assert names(work) == [] and names(tmp_path) == ["a", "b", "work"]

    def fail(file: BinaryIO) -> None:
        assert len(list(leftovers(work))) == 2 and not (tmp_path / "c").exists()
        full()

    with pytest.raises(StorageError):
        replace_together({tmp_path / "c": lambda file: None, tmp_path / "d": fail}, work)
    assert names(work) == [] and names(tmp_path) == ["a", "b", "work"]
    assert replace_together({}, work) == []


def test_the_checksum_is_of_the_bytes_that_were_handed_over(tmp_path: Path) -> None:
    pieces = [b"", b"abc", memoryview(b"\0" * 3_000_000), bytearray(b"d")]
    with HashedFile(tmp_path / "a") as file:
        for piece in pieces:
            file.write(piece)
        assert file.tell() == 3_000_004
        with pytest.raises(io.UnsupportedOperation):
            file.seek(0)
    assert file.sha256.digest() == hashlib.sha256((tmp_path / "a").read_bytes()).digest()


def test_what_a_killed_process_leaves_is_found(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    if not (pid := os.fork()):
        with replaced(tmp_path / "a") as file:
            file.write(b"new")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert (tmp_path / "a").read_text() == "old"
    (left,) = leftovers(tmp_path)
    assert left.name.startswith(f".a.{pid}-")
    assert temporary_name(tmp_path / "a") != temporary_name(tmp_path / "a")  # in two containers, pids are the same
