"""meeting: ranks that start again meet one another, not the dead, in a store that remembers all of them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
import torch.distributed as dist

from helpers.jobs import free_port, wait_for
from lora_clip.app import launch, meeting
from lora_clip.errors import PeerError

PATIENCE = timedelta(seconds=100)


@pytest.fixture
def store() -> Iterator[dist.TCPStore]:
    """The store that a launcher keeps for all starts of its ranks."""
    yield dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def start(port: int, ranks: int, action: Callable[[], None], kept: bool = True) -> list[int]:
    """The pids of ranks that meet, as torchrun would start them, and do something together."""
    return [pid for rank in range(ranks) if (pid := _fork(port, rank, ranks, action, kept))]


def _fork(port: int, rank: int, ranks: int, action: Callable[[], None], kept: bool) -> int:
    if pid := os.fork():
        return pid
    status = 1
    try:
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = str(kept)
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
    dead = start(store.port, before, lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert statuses(dead) == [-signal.SIGKILL] * before
    assert statuses(start(store.port, after, lambda: None)) == [0] * after


def test_rank_0_opens_a_store_where_the_launcher_keeps_none() -> None:
    assert statuses(start(free_port(), 3, lambda: None, kept=False)) == [0, 0, 0]


def test_a_rank_that_waits_for_the_others_hears_signals(store: dist.TCPStore) -> None:
    def wait() -> None:
        if dist.get_rank() == 1:
            signal.pause()
        signal.signal(signal.SIGALRM, lambda *_: os._exit(7))
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        launch.RanksApart().barrier()

    waiting, absent = start(store.port, 2, wait)
    assert statuses([waiting]) == [7]
    os.kill(absent, signal.SIGKILL)
    os.waitpid(absent, 0)


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


def test_a_rank_that_never_comes_is_named(store: dist.TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.set("lora_clip/meeting/name", "earlier")
    store.set("lora_clip/meeting/earlier/1", "dead")
    monkeypatch.setattr(meeting, "SECONDS_TO_COME", 0.0)
    with pytest.raises(PeerError, match=r"2 of the ranks did not come within 0 s, rank 1 the first"):
        meeting.agree(store, 0, 3)


@pytest.mark.parametrize("started", [True, False])
def test_only_ranks_of_torchrun_meet_so(started: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[timedelta] = []
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if started:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    monkeypatch.setattr(launch, "meet", met.append)
    monkeypatch.setattr(launch.DDPStrategy, "setup_distributed", lambda self: None)
    launch.RanksApart().setup_distributed()
    assert met == ([launch.PATIENCE] if started else [])
