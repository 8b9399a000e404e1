"""The ranks of one start of a job meet under a name that no earlier start had.

torchrun keeps one store for all starts of a job. The addresses of ranks that are dead still stand in it, and ranks that
take those for one another's wait for ever (pytorch issue 167288). How often a group was restarted is no such name: each
node counts its own restarts, and a node that joins restarts the others without being counted.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from datetime import timedelta

import torch.distributed as dist

SECONDS_BETWEEN_LOOKS = 0.1


def keeps_a_store() -> bool:
    """Whether the launcher keeps a store that outlives the ranks; elsewhere rank 0 opens a new one each time."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def meet(patience: timedelta) -> None:
    """Make the process group of this start's ranks, over gloo. A collective."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=patience)
    name = agree(store, rank, ranks)
    dist.init_process_group("gloo", store=dist.PrefixStore(name, store), rank=rank, world_size=ranks, timeout=patience)


def agree(store: dist.Store, rank: int, ranks: int) -> str:
    """The name under which all ranks that run now meet: rank 0's, once each of them has answered to it.

    Keys of earlier starts may be in the store: an answer counts only below the new name, and is acknowledged.
    """
    board = dist.PrefixStore("lora_clip/meeting", store)
    return _call(board, ranks) if rank == 0 else _answer(board, rank)


def _call(board: dist.Store, ranks: int) -> str:
    name = uuid.uuid4().hex
    board.set("name", name)
    answers = [f"{name}/{rank}" for rank in range(1, ranks)]
    while answers and not board.check(answers):
        time.sleep(SECONDS_BETWEEN_LOOKS)  # a wait within the store would be deaf to signals
    board.set(f"{name}/all", json.dumps([board.get(answer).decode() for answer in answers]))
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
