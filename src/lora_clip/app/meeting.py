"""The ranks of one start of a job meet: under a name that no earlier start had, and not for ever.

torchrun may keep one store for all starts of a job. The addresses of ranks that are dead still stand in it, and ranks
that take those for one another's wait for ever (pytorch issue 167288). How often a group was restarted is no such name:
each node counts its own restarts, and a node that joins restarts the others without being counted.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from datetime import timedelta

import torch.distributed as dist

from lora_clip.errors import PeerError

SECONDS_BETWEEN_LOOKS = 0.05
SECONDS_TO_COME = 600.0
"""How much later than rank 0, which has planned the job by then, the others may be ready."""


def under_torchrun() -> bool:
    """Whether torchrun, or what sets its variables, has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def meet(patience: timedelta) -> None:
    """Make the process group of this start's ranks, over gloo. A collective.

    Raises PeerError where some never come.
    """
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = _open_store(rank, patience)
    name = agree(store, rank, ranks)
    dist.init_process_group("gloo", store=dist.PrefixStore(name, store), rank=rank, world_size=ranks, timeout=patience)


def _open_store(rank: int, patience: timedelta) -> dist.TCPStore:
    """The store by which ranks meet: the launcher's, where it keeps one, or one that rank 0 opens."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    opens = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    while not opens and not _answers(host, port):
        time.sleep(SECONDS_BETWEEN_LOOKS)  # a wait within torch would be deaf to signals
    return dist.TCPStore(host, port, is_master=opens, wait_for_workers=False, timeout=patience, multi_tenant=True)


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True


def agree(store: dist.Store, rank: int, ranks: int) -> str:
    """The name under which all ranks that run now meet: rank 0's, once each of them has answered to it.

    Keys of earlier starts may be in the store: an answer counts only below the new name, and is acknowledged.
    Raises PeerError where some do not answer.
    """
    board = dist.PrefixStore("lora_clip/meeting", store)
    return _call(board, ranks) if rank == 0 else _answer(board, rank)


def _call(board: dist.Store, ranks: int) -> str:
    name, until = uuid.uuid4().hex, time.monotonic() + SECONDS_TO_COME
    board.set("name", name)
    answers = {rank: f"{name}/{rank}" for rank in range(1, ranks)}
    while answers and not board.check(list(answers.values())):
        if time.monotonic() > until:
            raise PeerError(_told([rank for rank, answer in answers.items() if not board.check([answer])]))
        time.sleep(SECONDS_BETWEEN_LOOKS)
    board.set(f"{name}/all", json.dumps([board.get(answer).decode() for answer in answers.values()]))
    return name


def _answer(board: dist.Store, rank: int) -> str:
    own, answered = uuid.uuid4().hex, ""
    while True:
        name = board.get("name").decode() if board.check(["name"]) else ""
        if name != answered:
            board.set(f"{name}/{rank}", own)
            answered = name
        if name and board.check([f"{name}/all"]):
            acknowledged = json.loads(board.get(f"{name}/all"))
            if acknowledged[rank - 1 : rank] == [own]:
                return name
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _told(absent: list[int]) -> str:
    return (
        f"{len(absent)} of the ranks did not come within {SECONDS_TO_COME:g} s, rank {absent[0]} the first of them: "
        "their node may be gone, or see this one under another address. Type the same command again"
    )
