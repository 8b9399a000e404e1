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
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from copy import copy
from itertools import count
from pathlib import Path
from typing import Any

from lora_clip.output.board import FOLDER, Board
from lora_clip.output.ledger import CommittedRange, line_of, range_of
from lora_clip.types import WorkRange

COUNT, FINISH = "count", "finish"
DONE, FINISHED = ".done", ".finished"
RANKS = 10_000
"""Numbers of members that each job has for its ranks."""
BEATS = 4
"""How often a member is touched in the time after which it is given up."""
PATIENCE_WITH_COUNTING = 10
"""So many times as long is somebody who lives waited for to count a shard; counting it twice harms nothing."""


class Share:
    """The folder `shared/` of the output in `root`, or another `board`, as its member `me` sees it.

    Members that have not been heard of for `seconds`, by the file system's own clock, are given up. When the last of
    the work is done the folder goes, and with it whatever somebody who comes too late would say in it: every method
    takes that for an answer, and none makes the folder anew.
    """

    def __init__(self, root: Path, seconds: float, me: int = 0, board: Board | None = None) -> None:
        self.seconds, self.me = seconds, me
        self.board = board or Board(root / FOLDER)
        self._members: dict[str, int] = {}

    def begin(self, about: Mapping[str, Any]) -> None:
        """Make the folder; for a job that is alone. Raises StorageError."""
        self.board.begin()
        self.board.make("share.json", json.dumps(about).encode())

    @property
    def about(self) -> dict[str, Any] | None:
        """What `begin` was given; None where no work is shared."""
        found: dict[str, Any] | None = _json(self.board.read("share.json"))
        return found

    @property
    def job(self) -> int:
        """The number of this member's job."""
        return self.me // RANKS

    @property
    def is_over(self) -> bool:
        """Whether all is done, and the folder gone."""
        return self.board.is_over

    def join(self) -> None:
        """Become the first rank of a new job. Raises FileNotFoundError where the share is over."""
        self.seconds = (self.about or {}).get("seconds", self.seconds)
        members = (job * RANKS for job in count())
        self.me = next(one for one in members if self.board.make(_member(one), _unique(), durable=False))

    def rank(self, rank: int) -> Share:
        """The share as another rank of this job sees it."""
        other = copy(self)
        other.me = self.job * RANKS + rank
        return other

    def beat(self) -> None:
        """Tell that this member lives."""
        with suppress(OSError):  # the next beat may succeed
            if not self.is_over:
                self.board.touch(_member(self.me))

    def leave(self) -> None:
        """Tell that no rank of this job will do anything any more."""
        for name in self.board.names("members"):
            if name.startswith(f"{self.job:05d}"):
                self.board.remove(f"members/{name}")

    def lives(self, member: int) -> bool:
        """Whether a member was heard of. Both times are the file system's: clocks of machines differ."""
        heard = self.board.heard(_member(member))
        return heard is not None and self._now() - heard < self.seconds

    def _now(self) -> float:
        return self.board.heard(_member(self.me)) or 0.0

    def look(self, shard: int) -> Collection[str]:
        """The names of what was said of a shard."""
        return self.board.names(_of(shard))

    def is_finished(self, shard: int) -> bool:
        """Whether a shard's files are in their final folders."""
        return self.board.exists(_of(shard) + FINISHED) or self.is_over

    def claim(self, shard: int, unit: str) -> bool:
        """Take something that nobody has taken yet; whether it is this member's now."""
        return self._take(shard, f"{unit}.0")

    def take_over(self, shard: int, unit: str, names: Collection[str]) -> bool:
        """Take what nobody has taken, or a member that is given up; `names` are those that `look` has seen."""
        generation = next(number for number in count() if f"{unit}.{number}" not in names)
        if generation and self._is_held(f"{_of(shard)}/{unit}.{generation - 1}"):
            return False
        return self._take(shard, f"{unit}.{generation}")

    def _is_held(self, claim: str) -> bool:
        if claim not in self._members:
            if (found := self.board.read(claim)) is None:
                return True  # the shard is finished: there is nothing to take
            self._members[claim] = int(found.split()[0])
        if not claim.rpartition("/")[2].startswith(COUNT):
            return self.lives(self._members[claim])
        if (heard := self.board.heard(claim)) is None:
            return True
        stuck = self._now() - heard > PATIENCE_WITH_COUNTING * self.seconds
        return not stuck and self.lives(self._members[claim])

    def _take(self, shard: int, name: str) -> bool:
        if self.is_finished(shard):
            return False
        try:
            self.board.make_room(_of(shard))
            taken = self.board.make(f"{_of(shard)}/{name}", f"{self.me} ".encode() + _unique(), durable=False)
        except FileNotFoundError:
            return False
        if self.is_finished(shard):  # that is said before a shard's folder goes, and so before it was made anew here
            self.board.clear(_of(shard))
            return False
        return taken

    def count(self, shard: Mapping[str, Any]) -> None:
        """Tell what counting a shard has found, as plain JSON; who was first is believed."""
        self._say(shard["id"], COUNT, shard)

    def counted(self, shard: int) -> dict[str, Any] | None:
        """What was told of a shard; None as long as nobody has."""
        found: dict[str, Any] | None = _json(self.board.read(f"{_of(shard)}/{COUNT}"))
        return found

    def commit(self, entry: CommittedRange) -> bool:
        """Say that a range is done, its files being on disk; False where another job has done it, and said so."""
        return not self.is_finished(entry.shard) and self._say(
            entry.shard, unit_of(WorkRange(entry.shard, entry.start, entry.stop)) + DONE, line_of(entry)
        )

    def _say(self, shard: int, name: str, record: Mapping[str, Any]) -> bool:
        try:
            return self.board.make(f"{_of(shard)}/{name}", json.dumps(record).encode())
        except FileNotFoundError:
            return False

    def committed(self, shard: int) -> list[CommittedRange]:
        """The ranges of a shard that are done, as long as it is not finished."""
        names = sorted(name for name in self.look(shard) if name.endswith(DONE))
        found = (self.board.read(f"{_of(shard)}/{name}") for name in names)
        return [range_of(json.loads(line)) for line in found if line is not None]

    def finish(self, shard: int) -> None:
        """Say that a shard's files are in their final folders."""
        with suppress(FileNotFoundError):
            self.board.make(_of(shard) + FINISHED, b"", durable=False)
            self.board.clear(_of(shard))

    def end(self) -> None:
        """Clear everything away, in one step for those who look."""
        self.board.end()


def _member(member: int) -> str:
    return f"members/{member:09d}"


def _of(shard: int) -> str:
    return f"{shard:06d}"


def _unique() -> bytes:
    """What tells who has made a file where the answer got lost."""
    return os.urandom(8).hex().encode()


def _json(text: bytes | None) -> Any:
    return None if text is None else json.loads(text)


def keep_beating(share: Share) -> threading.Event:
    """Tell, on a thread, that a member lives, as long as its process does, or until what is returned is set."""
    stopped = threading.Event()

    def beat() -> None:
        while not stopped.wait(share.seconds / BEATS):
            share.beat()

    share.beat()  # before anything is claimed
    threading.Thread(target=beat, name="heartbeat", daemon=True).start()
    return stopped


def unit_of(work: WorkRange) -> str:
    """The name under which a range is claimed."""
    return f"{work.start:09d}-{work.stop:09d}"


def shared_ranges(root: Path) -> Iterator[CommittedRange]:
    """All ranges that are done and in no finished shard."""
    share = Share(root, 0)
    for name in share.board.names(""):
        if name.isdigit():
            yield from share.committed(int(name))
