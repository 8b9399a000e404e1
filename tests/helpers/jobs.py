"""Whole jobs in real processes, for the tests: start them, kill them, and look at what they left.

A job is started cold (`python predict.py …`, torchrun), or by `nursery()`, a process that has done the imports already
and forks: processes like any other, without the seconds that the imports take.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psutil
import pyarrow.parquet as pq

from helpers.images import jpeg, png, write_tar

PROJECT = Path(__file__).parents[2]
PREDICT = PROJECT / "predict.py"
COMMAND = (sys.executable, "-m", "lora_clip")
PATIENCE = 120.0
"""Seconds after which a job hangs."""
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PORTS = (15_000, 31_000)
"""Below those of which Linux takes one for a connection that is begun."""
WORKERS = 8
"""As many test processes as scripts/test starts at most."""
MAIN = str(PROJECT / "src" / "lora_clip" / "__main__.py")
NURSERY = Path(__file__).with_name("nursery.py")


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    status: int
    stdout: str
    stderr: str
    seconds: float

    def expect(self, status: int = 0) -> Outcome:
        """Itself, if that is its exit status."""
        assert self.status == status, f"exit status {self.status}\n{self.stdout}\n{self.stderr}"
        return self


class Job:
    """A running job, with the files that its output goes to; `pid` leads a session of its own."""

    def __init__(self, pid: int, wait: Callable[[float], int], logs: Path) -> None:
        self.pid, self._wait, self._logs = pid, wait, logs
        self._started = time.monotonic()

    def wait(self, seconds: float = PATIENCE) -> Outcome:
        """Wait for its end; a job that does not end is killed, and fails the test."""
        try:
            status = self._wait(seconds)
        except subprocess.TimeoutExpired:
            self.signal_all(signal.SIGKILL)
            raise AssertionError(f"still running after {seconds} s:\n{self.stderr}") from None
        return Outcome(status, self.stdout, self.stderr, time.monotonic() - self._started)

    @property
    def stdout(self) -> str:
        return (self._logs / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (self._logs / "stderr").read_text()

    def members(self) -> list[psutil.Process]:
        """All its living processes: ranks and workers, orphans and those in other sessions (torchrun's ranks) too."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                mine = os.getsid(process.pid) == self.pid or process.environ().get("JOB") == str(self._logs)
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def ranks(self) -> dict[int, psutil.Process]:
        """Its rank processes, by local rank: those that run predict.py and are not workers of another."""
        found = {}
        members = {process.pid: process for process in self.members()}
        for pid, process in members.items():
            with contextlib.suppress(psutil.Error):
                rank = process.environ().get("LOCAL_RANK", "0")
                parent = members.get(process.ppid())
                worker = parent is not None and is_predict(parent) and parent.environ().get("LOCAL_RANK", "0") == rank
                if is_predict(process) and not worker:
                    found[int(rank)] = members[pid]
        return found

    def signal_all(self, number: int) -> None:
        """Send a signal to all its processes, as the terminal does for Ctrl-C."""
        for process in self.members():
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)

    def freeze(self) -> None:
        """Stop all its processes, so that what shares its work believes that it is dead."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGSTOP)  # at once: looking for the others takes longer than a small job
        self.signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.signal_all(signal.SIGCONT)

    def kill(self) -> None:
        """Kill all its processes, those too that one of them forks meanwhile."""
        self.signal_all(signal.SIGKILL)
        self.wait()
        while members := self.members():
            for process in members:
                with contextlib.suppress(psutil.Error):
                    process.kill()

    def gone(self, seconds: float = PATIENCE) -> bool:
        """Whether all its processes end within some time."""
        return wait_for(lambda: not self.members(), seconds)


@cache
def ports() -> Iterator[int]:
    """Ports for the jobs of this test process, in turn: its neighbours under xdist have others."""
    first, last = PORTS
    many = (last - first) // WORKERS
    first += many * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % WORKERS)
    begin = random.SystemRandom().randrange(many)  # hypothesis seeds the other one, for all
    return (first + number % many for number in itertools.count(begin))


def free_port() -> int:
    """A TCP port that nothing listens at, and that the kernel gives to no connection: it is taken seconds later."""
    while True:
        port = next(ports())
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def is_predict(process: psutil.Process) -> bool:
    """Whether the process runs predict.py itself, rather than a launcher that runs it."""
    line = process.cmdline()
    return any(word.endswith("predict.py") for word in line[1:3])


def wait_for(condition: Callable[[], Any], seconds: float = PATIENCE, pause: float = 0.02) -> bool:
    """Whether a condition becomes true within some time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds(condition):
            return True
        time.sleep(pause)
    return holds(condition)


def holds(condition: Callable[[], Any]) -> bool:
    """Whether a condition is true: it is not where a file of a running job goes between its listing and its reading."""
    try:
        return bool(condition())
    except FileNotFoundError:
        return False


def environment(**more: str) -> dict[str, str]:
    """A user's environment, with one thread a rank: the same bytes are promised at one thread count."""
    clean = {key: value for key, value in os.environ.items() if key not in RANK_VARIABLES}
    return clean | {"OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "0"} | more


def command(overrides: Sequence[object], ranks: int, launcher: str) -> list[str]:
    """What a user types, for the CPU."""
    typed = list(map(str, overrides))
    cpu = [] if any(override.startswith("trainer.accelerator=") for override in typed) else ["trainer.accelerator=cpu"]
    line = [str(PREDICT), *typed, *cpu]
    if launcher == "torchrun":
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", *line]
    return [sys.executable, *line, *([f"trainer.devices={ranks}"] if ranks > 1 else [])]


def start(
    *overrides: object, ranks: int = 1, launcher: str = "python", folder: Path | None = None,
    preexec: Callable[[], None] | None = None, **more: str,
) -> Job:  # fmt: skip
    """Start a job cold."""
    return start_line(command(overrides, ranks, launcher), more, folder, preexec)


def start_line(
    line: Sequence[str], more: Mapping[str, str], folder: Path | None = None,
    preexec: Callable[[], None] | None = None,
) -> Job:  # fmt: skip
    """Start what is typed, whatever it is, with `more` in its environment."""
    logs = new_folder()
    with (logs / "stdout").open("wb") as out, (logs / "stderr").open("wb") as err:
        process = subprocess.Popen(
            line, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=folder or logs,
            env=environment(JOB=str(logs), MASTER_PORT=str(free_port()), **more), start_new_session=True,
            preexec_fn=preexec,
        )  # fmt: skip
    return Job(process.pid, process.wait, logs)


def lora_clip(
    *words: object, folder: Path | None = None, cold: bool = False, **more: str
) -> subprocess.CompletedProcess[str]:
    """A sub-command, as a user types it, to its end; `cold`: by a new Python, which reads its environment anew."""
    line = [*COMMAND, *map(str, words)]
    job = start_line(line, more, folder) if cold else nursery().start_script([MAIN, *line[3:]], 1, folder, more)
    outcome = job.wait(2 * PATIENCE)
    return subprocess.CompletedProcess(line, outcome.status, outcome.stdout, outcome.stderr)


def predict(*overrides: object, **options: Any) -> Outcome:
    """Run a job cold, to its end."""
    return start(*overrides, **options).wait()


class Nursery:
    """A process with the imports done, that forks jobs, several at once too."""

    def __init__(self) -> None:
        line = [sys.executable, "-P", str(NURSERY)]  # -P: the tests' helpers are no packages that the job may import
        self._process = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
        )
        assert self._answer() == "ready"

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def start(self, *overrides: object, ranks: int = 1, folder: Path | None = None, **more: str) -> Job:
        """Start a job, with `more` in its environment."""
        return self.start_script(command(overrides, 1, "python")[1:], ranks, folder, more)

    def start_script(
        self,
        arguments: Sequence[str],
        ranks: int = 1,
        folder: Path | None = None,
        more: Mapping[str, str] | None = None,
    ) -> Job:
        """Start any Python script: its path, and what is typed after it."""
        assert self._process.stdin is not None
        logs = new_folder()
        order = {
            "arguments": arguments,
            "folder": str(folder or logs),
            "ranks": ranks,
            "port": free_port(),
            "environment": dict(more or {}),
            **{name: str(logs / name) for name in ("stdout", "stderr", "status")},
        }
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        pid, started = int(self._answer()), time.monotonic()
        return Job(pid, lambda seconds: self._status(pid, logs / "status", started + seconds), logs)

    def _status(self, pid: int, file: Path, end: float) -> int:
        if not wait_for(file.exists, max(0.0, end - time.monotonic())):
            os.killpg(pid, signal.SIGKILL)
            assert wait_for(file.exists)
        return int(file.read_text())

    def predict(self, *overrides: object, **options: Any) -> Outcome:
        """Run a job to its end."""
        return self.start(*overrides, **options).wait()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@cache
def nursery() -> Nursery:
    """The Nursery of this test session."""
    opened = Nursery()
    atexit.register(opened.close)
    return opened


@cache
def session_folder() -> Path:
    """A folder for the length of the test session."""
    folder = Path(tempfile.mkdtemp(prefix="jobs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def new_folder() -> Path:
    """An empty folder below it."""
    return Path(tempfile.mkdtemp(dir=session_folder()))


class Stage:
    """A stage of gate.py in a job: `TYPED` is typed, and the job started with `options`.

    Its name is part of what is embedded: who goes on with the output types it too.
    """

    TYPED: ClassVar[str]

    def __init__(self, folder: Path | None, **variables: str) -> None:
        self.folder, self.variables = folder or new_folder(), variables
        shutil.copy(PROJECT / "tests/helpers/gate.py", self.folder)

    @property
    def options(self) -> dict[str, Any]:
        """How a job is started that has it."""
        return {"folder": self.folder, **self.variables}


class Gate(Stage):
    """Each worker gets so many images, and is held until the gate is opened: the job is caught at work for certain."""

    TYPED = "data.stages=[gate:stage]"

    def __init__(self, images: int = 0) -> None:
        self._file = new_folder() / "open"
        super().__init__(None, GATE=str(self._file), LET_THROUGH=str(images))

    def open(self) -> Gate:
        """Let all workers go on, those too that come later."""
        self._file.touch()
        return self


class Meeting(Stage):
    """Each of a job's ranks gets work, however late it begins: the others wait for it with their first image."""

    TYPED = "data.stages=[gate:together]"

    def __init__(self, ranks: int, folder: Path | None = None) -> None:
        super().__init__(folder, MEETING=str(new_folder()), RANKS=str(ranks))


@cache
def uninterrupted(*overrides: object) -> Path:
    """The output of one rank that nothing disturbed, shared by the tests: to be compared with, not to be changed."""
    folder = new_folder() / "output"
    nursery().predict(f"output_dir={folder}", *overrides).expect(0)
    return folder


# --- What a job left ---------------------------------------------------------------------------------------------

KINDS = ("img_emb", "text_emb", "metadata", "rejects")


def snapshot(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file of the output that a reader sees."""
    paths = [path for kind in KINDS for path in sorted((folder / kind).glob("**/*"))]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def everything(folder: Path) -> list[str]:
    """The names of all files and folders below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def ledger(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """Each rank's committed lines; not the one that is just being written."""
    return {
        int(path.stem.removeprefix("rank_")): [json.loads(line) for line in path.read_text().split("\n")[:-1]]
        for path in sorted((folder / "ranks").glob("*.jsonl"))
    }


def committed(folder: Path) -> list[tuple[int, int]]:
    """Every (shard, position) that some rank embedded, from the lines of pieces that were not assembled from others."""
    lines = [line for found in ledger(folder).values() for line in found]
    runs = [(line["shard"], line["start"], line["stop"]) for line in lines]
    first_hand = [
        (shard, start, stop)
        for shard, start, stop in runs
        if not any(
            other[0] == shard and start <= other[1] and other[2] <= stop
            for other in runs
            if other != (shard, start, stop)
        )
    ]
    return sorted((shard, position) for shard, start, stop in first_hand for position in range(start, stop))


def identities(folder: Path) -> list[tuple[int, int]]:
    """The (shard, position) of every row and every reject."""
    found: list[tuple[int, int]] = []
    for kind in ("metadata", "rejects"):
        for path in sorted((folder / kind).glob("*.parquet")):
            table = pq.read_table(path, columns=["shard", "position"]).to_pydict()
            found += zip(table["shard"], table["position"], strict=True)
    return sorted(found)


def check_layout(folder: Path, rows: int, rejects: int = 0) -> None:
    """Assert what clip-retrieval's readers need of img_emb/ and metadata/, and the numbers of rows and rejects."""
    npys, parquets = sorted((folder / "img_emb").iterdir()), sorted((folder / "metadata").iterdir())
    suffixes = [path.name.removeprefix("img_emb_").removesuffix(".npy") for path in npys]
    assert suffixes == [path.name.removeprefix("metadata_").removesuffix(".parquet") for path in parquets]
    assert all(len(suffix) == 6 and suffix.isdigit() for suffix in suffixes)
    shapes, found = set(), 0
    for npy, parquet in zip(npys, parquets, strict=True):
        array = np.load(npy, allow_pickle=False)
        assert array.ndim == 2 and len(array) > 0 and array.flags.c_contiguous
        assert array.dtype.str in ("<f2", "<f4")
        table = pq.read_table(parquet)
        assert table.column_names[:2] == ["image_path", "key"] and len(table) == len(array)
        assert np.abs(np.linalg.norm(array.astype(np.float32), axis=1) - 1).max() < 2e-3
        shapes.add((array.shape[1], array.dtype.str))
        found += len(array)
    assert len(shapes) <= 1 and found == rows
    if (folder / "text_emb").exists():
        check_texts(folder)
    tables = [pq.read_table(path) for path in sorted((folder / "rejects").glob("*"))]
    assert all(len(table) for table in tables) and sum(map(len, tables)) == rejects
    assert not (folder / "parts").exists()
    assert not [name for name in everything(folder) if name.endswith(".tmp")]


def check_texts(folder: Path) -> None:
    """Assert that text_emb/ has a file for each of img_emb/, of the same shape and dtype, of unit vectors."""
    npys, texts = ([*sorted((folder / kind).iterdir())] for kind in ("img_emb", "text_emb"))
    assert [path.name.replace("img_emb", "text_emb") for path in npys] == [path.name for path in texts]
    for image, text in zip(npys, texts, strict=True):
        images_ND, texts_ND = (np.load(path, allow_pickle=False) for path in (image, text))
        assert images_ND.shape == texts_ND.shape and images_ND.dtype == texts_ND.dtype and texts_ND.flags.c_contiguous
        assert np.abs(np.linalg.norm(texts_ND.astype(np.float32), axis=1) - 1).max() < 2e-3


# --- Input -------------------------------------------------------------------------------------------------------


def write_shard(path: Path, images: int, seed: int = 0, more: Mapping[str, bytes] | None = None) -> Path:
    """A tar of so many small pictures, and more members after them."""
    pictures = {f"{seed:03d}{number:05d}.jpg": jpeg(seed=1000 * seed + number) for number in range(images)}
    return write_tar(path, pictures | dict(more or {}))


def malformed() -> dict[str, bytes]:
    """What is called an image in the wild and is none, by name."""
    sound = jpeg(seed=7)
    return {
        "empty": b"",
        "text": b"<html>404 Not Found</html>",
        "head": sound[:20],
        "noise": random.Random(0).randbytes(2000),
        "png": png()[:60],
        "zeros": bytes(3000),
    }
