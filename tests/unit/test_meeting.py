"""meeting: ranks that start again meet one another, not the dead, in a store that remembers all of them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
import torch.distributed as dist

from helpers.jobs import wait_for
from lora_clip.app import launch, meeting

PATIENCE = timedelta(seconds=100)


@pytest.fixture
def store() -> Iterator[dist.TCPStore]:
    """The store that a launcher keeps for all starts of its ranks."""
    yield dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def start(store: dist.TCPStore, ranks: int, action: Callable[[], None]) -> list[int]:
    """The pids of ranks that meet, as torchrun would start them, and do something together."""
    return [pid for rank in range(ranks) if (pid := _fork(store.port, rank, ranks, action))]


def _fork(port: int, rank: int, ranks: int, action: Callable[[], None]) -> int:
    if pid := os.fork():
        return pid
    status = 1
    try:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "WORLD_SIZE": ranks}
        os.environ |= {name: str(value) for name, value in place.items()}
        meeting.meet(PATIENCE)
        dist.barrier()
        action()
        status = 0
    finally:
        os._exit(status)


def statuses(pids: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


@pytest.mark.parametrize(("before", "after"), [(2, 2), (3, 2), (2, 3)])
def test_ranks_meet_although_the_addresses_of_the_dead_are_in_the_store(
    store: dist.TCPStore, before: int, after: int
) -> None:
    dead = start(store, before, lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert statuses(dead) == [-signal.SIGKILL] * before
    assert statuses(start(store, after, lambda: None)) == [0] * after


def test_a_rank_that_comes_before_rank_0_waits_for_its_name(store: dist.TCPStore) -> None:
    """A start before left its name behind; the early rank answers to that one, and is not heard."""
    agreed: list[str] = []

    def join(rank: int) -> threading.Thread:
        client = dist.TCPStore("127.0.0.1", store.port, is_master=False, wait_for_workers=False)
        thread = threading.Thread(target=lambda: agreed.append(meeting.agree(client, rank, 2)))
        thread.start()
        return thread

    for _ in range(2):
        early = join(1)
        if agreed:
            assert wait_for(lambda: store.check([f"lora_clip/meeting/{agreed[0]}/1"]))
        late = join(0)
        late.join(60)
        early.join(60)
    assert len(agreed) == 4 and agreed[0] == agreed[1] != agreed[2] == agreed[3]


@pytest.mark.parametrize("kept", ["True", "False"])
def test_only_where_the_launcher_keeps_a_store(kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[timedelta] = []
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", kept)
    monkeypatch.setattr(launch, "meet", met.append)
    monkeypatch.setattr(launch.DDPStrategy, "setup_distributed", lambda self: None)
    launch.RanksApart().setup_distributed()
    assert met == ([launch.PATIENCE] if kept == "True" else [])
