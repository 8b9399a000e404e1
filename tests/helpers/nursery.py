"""A process that does a job's imports once, and then forks jobs: `python -P nursery.py`, an order a line on stdin.

An order is JSON: `arguments` (a script and what follows it), `folder`, `ranks`, `port`, `stdout`, `stderr` and `status`
(paths). It is answered with the job's pid; the job's status stands in its file when it has ended. For several ranks it
does what torchrun does: it sets the variables, and ends all ranks when one fails.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

Order = Mapping[str, Any]


class Ended:
    """The jobs that have ended, told as soon as it is known where."""

    def __init__(self) -> None:
        self.files: dict[int, Path] = {}
        self.statuses: dict[int, int] = {}

    def reap(self, *_: object) -> None:
        """Of all that have ended; for SIGCHLD, which interrupts its own handler otherwise."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self.statuses[ended[0]] = os.waitstatus_to_exitcode(ended[1])
        self.tell()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def tell(self) -> None:
        """Write the statuses down, each in one step."""
        for pid in [pid for pid in self.statuses if pid in self.files]:
            file, status = self.files.pop(pid), self.statuses.pop(pid)
            unfinished = file.with_suffix(".unfinished")
            unfinished.write_text(str(status))
            unfinished.replace(file)


def serve() -> None:
    """Fork a job for every order; several may be there at once."""
    ended = Ended()
    signal.signal(signal.SIGCHLD, ended.reap)
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if not (pid := os.fork()):
            become(order)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        ended.files[pid] = Path(order["status"])
        ended.tell()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        print(pid, flush=True)


def become(order: Order) -> NoReturn:
    """Be the job: in a session of its own, with its output in files."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for stream, path in ((1, order["stdout"]), (2, order["stderr"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(order["folder"])
    os.environ |= order["environment"]
    if order["ranks"] > 1:
        launch(order)
    run(order)


def launch(order: Order) -> NoReturn:
    """Fork the ranks and wait for them."""
    ranks = set()
    for rank in range(order["ranks"]):
        if not (pid := os.fork()):
            os.environ |= rank_variables(rank, order["ranks"], order["port"])
            run(order)
        ranks.add(pid)
    first = 0
    while ranks:
        pid, status = os.wait()
        ranks.discard(pid)
        if status and not first:
            first = os.waitstatus_to_exitcode(status)
            for other in ranks:
                os.kill(other, signal.SIGTERM)
    os._exit(first if first >= 0 else 128 - first)


def rank_variables(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torchrun tells a rank."""
    of_rank = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "GROUP_WORLD_SIZE": 1}
    of_all = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    named = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "tests"}
    return {key: str(value) for key, value in {**of_rank, **of_all, **named}.items()}


def run(order: Order) -> NoReturn:
    """Run the script as Python would, and end as it ends."""
    sys.argv = order["arguments"]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)
    os._exit(99)


IMPORTS = (
    "hydra", "lightning.pytorch", "peft", "pyarrow.dataset", "simplejpeg", "torch", "transformers.models.clip",
    "webdataset", "lora_clip.app.job",
)  # fmt: skip


if __name__ == "__main__":
    for name in IMPORTS:
        importlib.import_module(name)
    serve()
