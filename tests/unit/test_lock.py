"""locks: one job at a time in a folder, all its processes together, free again when they have died."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.children import in_child
from lora_clip.errors import OutputError, StorageError
from lora_clip.io.lock import FolderLock, seconds_to_wait


def claim(folder: Path) -> FolderLock:
    lock = FolderLock(folder)
    lock.claim()
    return lock


def test_a_second_job_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    lock = claim(tmp_path)
    assert in_child(lambda: claim(tmp_path)) == 7
    lock.release()
    assert in_child(lambda: claim(tmp_path)) == 0


def test_ranks_share_it_and_nobody_else(tmp_path: Path) -> None:
    lock = claim(tmp_path)
    FolderLock(tmp_path).share()  # the same process once more, as rank 0's writer
    assert in_child(lambda: FolderLock(tmp_path).share()) == 0
    assert in_child(lambda: claim(tmp_path)) == 7
    lock.release()
    assert in_child(lambda: claim(tmp_path)) == 0


def test_it_is_not_inherited_and_free_when_its_process_has_died(tmp_path: Path) -> None:
    """A grandchild that lives on, forked or started, holds nothing."""
    reader, writer = os.pipe()
    if not (child := os.fork()):
        os.close(writer)
        claim(tmp_path)
        if not os.fork():
            os.read(reader, 1)
            os._exit(0)
        subprocess.Popen([sys.executable, "-c", f"import os; os.read({reader}, 1)"], pass_fds=[reader])
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    claim(tmp_path).release()
    os.close(writer)
    os.close(reader)


def test_a_file_that_its_last_holder_removes_locks_nobody_in_or_out(tmp_path: Path) -> None:
    """Two jobs may have opened the file that the first one removes: they must not end with a lock each."""
    first = claim(tmp_path)
    reader, writer = os.pipe()

    def wait_and_claim() -> None:
        late = FolderLock(tmp_path)
        os.write(writer, b".")
        while not _removed.exists():
            pass
        late.claim()
        assert late.path.exists()
        if in_child(lambda: claim(tmp_path)) != 7:
            os._exit(1)

    _removed = tmp_path / "removed"
    if not (pid := os.fork()):
        try:
            wait_and_claim()
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    os.read(reader, 1)
    first.release(remove=True)
    _removed.touch()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_holder_that_is_dying_is_waited_for(tmp_path: Path) -> None:
    """Until the claimant has tried and failed the holder lives; only then is it ended."""
    reader, writer = os.pipe()
    if not (holder := os.fork()):
        claim(tmp_path)
        os.write(writer, b".")
        signal.pause()
    os.read(reader, 1)

    class Impatient(FolderLock):
        def try_claim(self, insist: bool = True) -> bool:
            if not (had := super().try_claim(insist)):
                os.kill(holder, signal.SIGKILL)
            return had

    Impatient(tmp_path).claim(patience=100)
    os.waitpid(holder, 0)
    assert in_child(lambda: claim(tmp_path)) == 7


@pytest.mark.parametrize(("restarts", "seconds"), [(None, 0), ("0", 0), ("3", 60)])
def test_only_a_job_that_is_started_again_waits(
    restarts: str | None, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHELASTIC_MAX_RESTARTS", raising=False)
    if restarts is not None:
        monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
    assert seconds_to_wait() == seconds


def test_a_file_system_without_locks_is_refused_where_it_matters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unable(*_: object) -> None:
        raise OSError(37, "No locks available")

    lock = FolderLock(tmp_path)
    monkeypatch.setattr(fcntl, "lockf", unable)
    with pytest.raises(OutputError, match="without locks"):
        lock.claim()
    lock.claim(insist=False)
    lock.release(remove=True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*\.lock"):
        FolderLock(tmp_path / "gone")
