"""What several jobs that write to one output tell one another, in its folder `shared/`: who does what, what is done.

    shared/share.json                           what the first job found, and how the others take part
    shared/members/000120003                    rank 3 of job 12; touched as long as it lives
    shared/000042/000000512-000001024.0         who does this range of shard 42: its content is a member
    shared/000042/000000512-000001024.1         who does it since the member before was not heard of
    shared/000042/000000512-000001024.done      that it is done: the line of the ledger, which is made once
    shared/000042/count, shared/000042/count.0  how many images the shard has, and who looks
    shared/000042/finish.0                      who puts the shard together
    shared/000042.finished                      that its files are in their final folders; its folder goes then

A claim keeps two jobs from doing the same, mostly. What counts is the `.done`, which only one of them can make: who was
stopped for an hour, and goes on with what another has done since, does it in vain and harms nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from lora_clip.io.atomic import write_text
from lora_clip.io.exclusive import create_new
from lora_clip.output.ledger import CommittedRange, line_of, range_of
from lora_clip.types import WorkRange

FOLDER = "shared"
GONE = f".{FOLDER}-"
COUNT, FINISH = "count", "finish"
DONE, FINISHED = ".done", ".finished"
RANKS = 10_000
"""Numbers of members that each job has for its ranks."""
BEATS = 4
"""How often a member is touched in the time after which it is given up."""
PATIENCE_WITH_COUNTING = 10
"""So many times as long is somebody who lives waited for to count a shard; counting it twice harms nothing."""


class Share:
    """The folder `shared/` of the output in `root`, as its member `me` sees it.

    Members that have not been heard of for `seconds`, by the file system's own clock, are given up. When the last of
    the work is done the folder goes, and with it whatever somebody who comes too late would say in it: every method
    takes that for an answer, and none makes the folder anew.
    """

    def __init__(self, root: Path, seconds: float, me: int = 0) -> None:
        self.root, self.seconds, self.me = root, seconds, me
        self.folder = root / FOLDER
        self._members: dict[Path, int] = {}

    def begin(self, about: Mapping[str, Any]) -> None:
        """Make the folder; for a job that is alone. Raises StorageError."""
        (self.folder / "members").mkdir(parents=True)
        write_text(self.folder / "share.json", json.dumps(about))

    @property
    def about(self) -> dict[str, Any] | None:
        """What `begin` was given; None where no work is shared."""
        try:
            found: dict[str, Any] = json.loads((self.folder / "share.json").read_text())
        except FileNotFoundError:
            return None
        return found

    @property
    def job(self) -> int:
        """The number of this member's job."""
        return self.me // RANKS

    @property
    def is_over(self) -> bool:
        """Whether all is done, and the folder gone."""
        return not self.folder.is_dir()

    def join(self) -> None:
        """Become the first rank of a new job. Raises FileNotFoundError where the share is over."""
        self.seconds = (self.about or {}).get("seconds", self.seconds)
        self.me = next(job * RANKS for job in count() if create_new(self._member(job * RANKS), b"", durable=False))

    def rank(self, rank: int) -> Share:
        """The share as another rank of this job sees it."""
        return Share(self.root, self.seconds, self.job * RANKS + rank)

    def beat(self) -> None:
        """Tell that this member lives."""
        if not self.is_over:
            with suppress(OSError):
                self._member(self.me).touch()

    def leave(self) -> None:
        """Tell that no rank of this job will do anything any more."""
        for path in (self.folder / "members").glob(f"{self.job:05d}*"):
            path.unlink(missing_ok=True)

    def lives(self, member: int) -> bool:
        """Whether a member was heard of. Both times are the file system's: clocks of machines differ."""
        try:
            heard = self._member(member).stat().st_mtime
        except FileNotFoundError:
            return False
        return self._now() - heard < self.seconds

    def _now(self) -> float:
        try:
            return self._member(self.me).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _member(self, member: int) -> Path:
        return self.folder / "members" / f"{member:09d}"

    def _of(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}"

    def look(self, shard: int) -> Collection[str]:
        """The names of what was said of a shard."""
        try:
            return {entry.name for entry in os.scandir(self._of(shard))}
        except FileNotFoundError:
            return ()

    def is_finished(self, shard: int) -> bool:
        """Whether a shard's files are in their final folders."""
        return self._of(shard).with_suffix(FINISHED).exists() or self.is_over

    def claim(self, shard: int, unit: str) -> bool:
        """Take something that nobody has taken yet; whether it is this member's now."""
        return self._take(shard, f"{unit}.0")

    def take_over(self, shard: int, unit: str, names: Collection[str]) -> bool:
        """Take what nobody has taken, or a member that is given up; `names` are those that `look` has seen."""
        generation = next(number for number in count() if f"{unit}.{number}" not in names)
        if generation and self._is_held(self._of(shard) / f"{unit}.{generation - 1}"):
            return False
        return self._take(shard, f"{unit}.{generation}")

    def _is_held(self, claim: Path) -> bool:
        try:
            if claim not in self._members:
                self._members[claim] = int(claim.read_text())
            patience = PATIENCE_WITH_COUNTING * self.seconds
            stuck = claim.name.startswith(COUNT) and self._now() - claim.stat().st_mtime > patience
        except FileNotFoundError:
            return True  # the shard is finished: there is nothing to take
        return not stuck and self.lives(self._members[claim])

    def _take(self, shard: int, name: str) -> bool:
        if self.is_finished(shard):
            return False
        try:
            self._of(shard).mkdir(exist_ok=True)
            taken = create_new(self._of(shard) / name, str(self.me).encode(), durable=False)
        except FileNotFoundError:
            return False
        if self.is_finished(shard):  # that is said before a shard's folder goes, and so before it was made anew here
            shutil.rmtree(self._of(shard), ignore_errors=True)
            return False
        return taken

    def count(self, shard: Mapping[str, Any]) -> None:
        """Tell what counting a shard has found, as plain JSON; who was first is believed."""
        self._say(shard["id"], COUNT, shard)

    def counted(self, shard: int) -> dict[str, Any] | None:
        """What was told of a shard; None as long as nobody has."""
        try:
            found: dict[str, Any] = json.loads((self._of(shard) / COUNT).read_text())
        except FileNotFoundError:
            return None
        return found

    def commit(self, entry: CommittedRange) -> bool:
        """Say that a range is done, its files being on disk; False where another job has done it, and said so."""
        return not self.is_finished(entry.shard) and self._say(
            entry.shard, unit_of(WorkRange(entry.shard, entry.start, entry.stop)) + DONE, line_of(entry)
        )

    def _say(self, shard: int, name: str, record: Mapping[str, Any]) -> bool:
        try:
            return create_new(self._of(shard) / name, json.dumps(record).encode())
        except FileNotFoundError:
            return False

    def committed(self, shard: int) -> list[CommittedRange]:
        """The ranges of a shard that are done, as long as it is not finished."""
        return list(_ranges_in(self._of(shard)))

    def finish(self, shard: int) -> None:
        """Say that a shard's files are in their final folders."""
        with suppress(FileNotFoundError):
            create_new(self._of(shard).with_suffix(FINISHED), b"", durable=False)
            shutil.rmtree(self._of(shard), ignore_errors=True)

    def end(self) -> None:
        """Remove the folder, in one step for those who look, and what an earlier one that was killed here has left."""
        with suppress(FileNotFoundError):
            self.folder.rename(self.root / f"{GONE}{os.urandom(4).hex()}")
        for gone in self.root.glob(f"{GONE}*"):
            shutil.rmtree(gone, ignore_errors=True)


def keep_beating(share: Share) -> None:
    """Tell, on a thread, that a member lives, as long as its process does."""

    def beat() -> None:
        while True:
            share.beat()
            time.sleep(share.seconds / BEATS)

    share.beat()  # before anything is claimed
    threading.Thread(target=beat, name="heartbeat", daemon=True).start()


def unit_of(work: WorkRange) -> str:
    """The name under which a range is claimed."""
    return f"{work.start:09d}-{work.stop:09d}"


def shared_ranges(root: Path) -> Iterator[CommittedRange]:
    """All ranges that are done and in no finished shard."""
    try:
        folders = [entry.path for entry in os.scandir(root / FOLDER) if entry.name.isdigit()]
    except FileNotFoundError:
        return
    for folder in folders:
        yield from _ranges_in(Path(folder))


def _ranges_in(folder: Path) -> Iterator[CommittedRange]:
    try:
        for path in [path for path in folder.iterdir() if path.name.endswith(DONE)]:
            yield range_of(json.loads(path.read_text()))
    except FileNotFoundError:
        return
