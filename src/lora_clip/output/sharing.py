"""An output to which several jobs write: ranges that count once, and shards put together from all that is committed."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from itertools import count
from pathlib import Path

from lora_clip.errors import OutputError
from lora_clip.io.atomic import storage_error
from lora_clip.io.lock import FolderLock
from lora_clip.output.ledger import CommittedRange, by_shard, covers, prefix
from lora_clip.output.share import FINISH, Share, shared_ranges
from lora_clip.output.snapshot import Snapshot
from lora_clip.output.store import Store
from lora_clip.types import UNCOUNTED

WAIT = 0.2
"""Seconds between two looks at what another job does."""
PATIENCE_WITH_FIRST = 600.0
"""Seconds that the first job may look at its input while others wait to take part."""
PATIENCE = 10
"""So many times as long as a silent member is waited for, a shard is that lacks something and that nobody finishes."""


def take_part(lock: FolderLock, share: Share) -> bool:
    """Hold an output's lock alone, as the first of the jobs that share it, or together with them; whether it is so.

    Raises OutputError where a job has it that does not share it, or is not through with beginning.
    """
    since = time.monotonic()
    while not lock.try_claim():
        held_together = lock.try_share()
        if held_together and share.about is not None:
            return True
        if held_together:
            lock.let_go()
        # one that has finished what was shared is about to end
        if time.monotonic() - since > (share.seconds if held_together else PATIENCE_WITH_FIRST):
            raise OutputError(
                f"another job is writing to {lock.folder} and does not share it with others (share=true): wait for it "
                "or stop it, or name another folder for this one"
            )
        time.sleep(WAIT * random.uniform(0.5, 1.5))
    return False


class DoneByAnotherError(Exception):
    """A range that another job has committed meanwhile."""


class SharedStore(Store):
    """An output directory as one of several jobs writes it.

    A range's files have a name of their own, and count if no other job has committed the range before; else
    DoneByAnotherError is raised, and they go.
    """

    def __init__(self, root: Path, share: Share) -> None:
        super().__init__(root)
        self.share = share
        self._numbers = count()

    def tag(self) -> str:
        """Another one each time."""
        return f"{self.share.me}-{next(self._numbers)}"

    def _tell(self, rank: int, entry: CommittedRange) -> None:
        if entry.final:
            super()._tell(rank, entry)
        elif not self.share.commit(entry):
            self._drop([entry])
            raise DoneByAnotherError


def finish_shard(store: SharedStore, before: Snapshot, shard: int, target: int) -> bool:
    """Put a shard together if all of it is committed and nobody else is at it; whether it is finished.

    `before` knows what was committed before the work was shared. Another job that does the same at the same time, since
    it was given up too early, writes the same bytes.
    """
    if store.share.is_finished(shard):
        return True
    found = by_shard([*before.committed.get(shard, []), *store.share.committed(shard)]).get(shard, [])
    if not covers(found, target) or not store.share.take_over(shard, FINISH, store.share.look(shard)):
        return False
    try:
        store.assemble(store.share.me, shard, prefix(found), before)
    except OSError:
        if not (store.share.is_over or _is_final(store, shard, target)):
            raise
    store.share.finish(shard)
    return True


def _is_final(store: Store, shard: int, target: int) -> bool:
    """Whether the ledger has a shard as finished: another job has taken the ranges away that this one still read."""
    return any(entry.final and entry.shard == shard and entry.stop >= target for entry in store.ledger.ranges())


def finish_all(store: SharedStore, before: Snapshot, targets: Mapping[int, int]) -> None:
    """Wait until all shards are finished, and do what nobody does.

    `targets` has how many images of each shard are wanted, UNCOUNTED where nobody knew when the work was shared. Raises
    OutputError where a shard lacks something for long: no job that reaches this has left any.
    """
    left, moved = dict(targets), time.monotonic()
    while left and not store.share.is_over:
        done = [shard for shard, target in left.items() if _finish_counted(store, before, shard, target)]
        moved = time.monotonic() if done else moved
        for shard in done:
            del left[shard]
        if left and time.monotonic() - moved > PATIENCE * store.share.seconds:
            raise OutputError(
                f"{store.root}: {len(left)} shards (the first: {min(left)}) lack images that no job has in hand: "
                "type the same command again when all jobs have ended"
            )
        time.sleep(WAIT if left else 0)


def _finish_counted(store: SharedStore, before: Snapshot, shard: int, target: int) -> bool:
    """The same, where it may not have been known how many images there are; a shard without any is finished."""
    if target == UNCOUNTED:
        if (told := store.share.counted(shard)) is None:
            return store.share.is_finished(shard)
        target = told["images"]
    return target == 0 or finish_shard(store, before, shard, target)


def dissolve(store: Store) -> bool:
    """Let what jobs have committed together stand in the ledger as if one had; whether there was any.

    For a job that is alone. Raises StorageError.
    """
    share = Share(store.root, 0)
    was_shared = not share.is_over
    try:
        store.ledger.append_all(0, shared_ranges(store.root))
        share.end()
    except OSError as error:
        raise storage_error(store.root, error) from error
    return was_shared
