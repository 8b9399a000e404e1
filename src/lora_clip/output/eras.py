"""An output in a bucket: objects that are made once, in place of a lock, of renames, and of lines that are added.

    shared/000007                 whose the 7th era of this output is: a random id; empty: all is done, nobody is at it
    shared/<id>/…                 what the jobs of that era tell one another, as in a folder's `shared/`
    shared/<id>/000042.finished   the lines of the ledger of a finished shard
    ranks/rank_<id>.jsonl         the lines of an era that is over, in one object

Who makes the next number is the first job of a new era; it may do so when nobody of the last one was heard of. Whoever
was frozen then, and goes on, says everything below a prefix that nobody reads, and finds that its era is over.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping
from pathlib import Path

from lora_clip.errors import OutputError
from lora_clip.io.addresses import redacted
from lora_clip.io.objects import Objects
from lora_clip.output.board import FOLDER, Board
from lora_clip.output.share import BEATS, COUNT, DONE, FINISHED, Share
from lora_clip.output.sharing import PATIENCE_WITH_FIRST, WAIT


class Era(Board):
    """The board of one era: objects below `shared/<id>/`. It is over when the next number is there."""

    def __init__(self, objects: Objects, number: int, id_: str, seconds: float) -> None:
        super().__init__(Path(FOLDER))
        self.objects, self.number, self.id, self.seconds = objects, number, id_, seconds
        self._about: bytes | None = None
        self._over, self._looked = False, 0.0

    def _key(self, name: str) -> str:
        return f"{FOLDER}/{self.id}/{name}"

    def begin(self) -> None:
        """Nothing: objects need no folder."""

    @property
    def is_over(self) -> bool:
        """Whether another era has begun, or this one was ended; looked for as often as members are heard of."""
        now = time.monotonic()
        if not self._over and now - self._looked > self.seconds / BEATS:
            found = self.objects.read_all([key_of(self.number), key_of(self.number + 1)])
            self._over = set(found.items()) != {(key_of(self.number), self.id.encode())}
            self._looked = now
        return self._over

    def make(self, name: str, data: bytes, durable: bool = True) -> bool:
        """Make an object once; whether this call made it."""
        return self.objects.make(self._key(name), data)

    def make_room(self, name: str) -> None:
        """Nothing: objects need no folder."""

    def read(self, name: str) -> bytes | None:
        """What an object holds; None where there is none."""
        if name != "share.json":
            return self.objects.read(self._key(name))
        self._about = self._about or self.objects.read(self._key(name))
        return self._about

    def exists(self, name: str) -> bool:
        """Whether there is such an object."""
        return self.heard(name) is not None

    def heard(self, name: str) -> float | None:
        """When an object was put, by the bucket's clock; None where there is none."""
        return self.objects.time(self._key(name))

    def names(self, name: str) -> set[str]:
        """The objects in a folder."""
        return set(self.objects.listed(self._key(name)))

    def touch(self, name: str) -> None:
        """Put an object anew, to be heard of now."""
        self.objects.put(self._key(name), os.urandom(8).hex().encode())

    def remove(self, name: str) -> None:
        """Remove an object."""
        self.objects.remove([self._key(name)])

    def clear(self, name: str) -> None:
        """Remove all objects below a folder."""
        self.objects.remove(self.objects.below(self._key(name)))

    def end(self) -> None:
        """Say that all is done: the ledger's lines in one object, then the next number, which is nobody's."""
        dissolve(self.objects, self.id)
        self.objects.make(key_of(self.number + 1), b"")
        self.objects.remove([*self.objects.below(f"{FOLDER}/{self.id}"), key_of(self.number)])


def key_of(number: int) -> str:
    """The object that says whose an era is."""
    return f"{FOLDER}/{number:06d}"


def newest(objects: Objects) -> tuple[int, str]:
    """The last era's number and id; the id is empty where nobody is at work."""
    numbers = [int(name) for name in objects.listed(FOLDER) if name.isdigit()]
    number = max(numbers, default=0)
    return number, (objects.read(key_of(number)) or b"").decode() if number else ""


def take_part(root: Path, objects: Objects, seconds: float) -> tuple[Share, bool]:
    """Join the jobs that are at work in a bucket, or be the first of a new era; and whether it was joined.

    Raises OutputError where a first job is not through with beginning for long.
    """
    since = time.monotonic()
    while time.monotonic() - since < PATIENCE_WITH_FIRST:
        number, id_ = newest(objects)
        share = Share(root, seconds, board=Era(objects, number, id_, seconds))
        patience = (share.about or {}).get("seconds", seconds) if id_ else seconds
        if not id_ or not _lives(objects, number, id_, patience):
            era = Era(objects, number + 1, os.urandom(6).hex(), seconds)
            if objects.make(key_of(era.number), era.id.encode()):
                share = Share(root, seconds, board=era)
                share.join()
                return share, False
        elif share.about is not None:
            share.join()
            return share, True
        time.sleep(WAIT * random.uniform(0.5, 1.5))
    raise OutputError(
        f"another job has been looking at its input for long, and is to begin in {redacted(objects.address)}: "
        "wait for it or stop it"
    )


def _lives(objects: Objects, number: int, id_: str, seconds: float) -> bool:
    """Whether anybody of an era was heard of, by the bucket's clock."""
    probe = f"{FOLDER}/probe-{os.urandom(4).hex()}"
    objects.put(probe, b"")
    now = objects.time(probe) or 0.0
    objects.remove([probe])
    heard = [found.time for found in objects.listed(f"{FOLDER}/{id_}/members").values()]
    return now - max([objects.time(key_of(number)) or 0.0, *heard]) < seconds


def said(objects: Objects, id_: str, known: Mapping[str, bytes] | None = None) -> dict[str, bytes]:
    """The ledger's lines as an era has them, by object; those that are `known` are not read again."""
    names = objects.below(f"{FOLDER}/{id_}") if id_ else []
    told = [name for name in names if name.endswith((DONE, FINISHED, f"/{COUNT}")) and name not in (known or {})]
    found = objects.read_all(told)
    return {name: b'{"counted": ' + text + b"}" if name.endswith(f"/{COUNT}") else text for name, text in found.items()}


def dissolve(objects: Objects, id_: str) -> None:
    """Let an era's lines stand in `ranks/`; who was first has read all of them."""
    if lines := [line for _, line in sorted(said(objects, id_).items()) if line]:
        objects.make(f"ranks/rank_{id_}.jsonl", b"\n".join(lines) + b"\n")


def sweep(objects: Objects, era: Era) -> None:
    """What eras before this one have left below `shared/` goes; their lines are kept. For the first job of an era."""
    kept = (key_of(era.number), f"{FOLDER}/{era.id}/")
    left = [name for name in objects.below(FOLDER) if not name.startswith(kept)]
    for id_ in sorted({name.split("/")[1] for name in left if name.count("/") > 1}):
        dissolve(objects, id_)
    objects.remove(left)
