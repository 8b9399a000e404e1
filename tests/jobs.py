"""Whole jobs in real processes, for the tests: start them, kill them, and look at what they left.

A job is started cold (`python predict.py …` or torchrun), or in a `Nursery`, a process that has done the imports already
and forks: a process like any other, without the seconds that the imports take.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
from PIL import Image

PROJECT = Path(__file__).parents[1]
PREDICT = PROJECT / "predict.py"
PATIENCE = 120.0
"""Seconds after which a job hangs."""
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
NURSERY = """
import json, os, runpy, sys
import torch, lightning.pytorch, transformers, peft, hydra, webdataset, pyarrow.parquet, simplejpeg
import lora_clip.job
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    if not (pid := os.fork()):
        os.setsid()
        for stream, path in ((1, order["stdout"]), (2, order["stderr"])):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644), stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(order["folder"])
        sys.argv = order["arguments"]
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code if isinstance(end.code, int) else 1)
        os._exit(99)
    print(pid, flush=True)
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


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

    def __init__(self, pid: int, wait: Callable[[float], int], logs: tempfile.TemporaryDirectory[str]) -> None:
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
        return (Path(self._logs.name) / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (Path(self._logs.name) / "stderr").read_text()

    def members(self) -> list[psutil.Process]:
        """All living processes of its session: ranks and workers, orphans too."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getsid(process.pid) == self.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def ranks(self) -> dict[int, psutil.Process]:
        """Its rank processes."""
        found = {}
        for process in self.members():
            with contextlib.suppress(psutil.Error):
                parent, rank = process.parent(), process.environ().get("LOCAL_RANK")
                if not is_predict(process) or (parent is not None and is_predict(parent) and rank is None):
                    continue
                if parent is not None and parent.environ().get("LOCAL_RANK") == rank and is_predict(parent):
                    continue
                found[int(rank or 0)] = process
        return found

    def signal_all(self, number: int) -> None:
        """Send a signal to all its processes, as the terminal does for Ctrl-C."""
        for process in self.members():
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)

    def gone(self, seconds: float = 15) -> bool:
        """Whether all its processes end within some time."""
        return wait_for(lambda: not self.members(), seconds)


def is_predict(process: psutil.Process) -> bool:
    """Whether the process runs predict.py itself, rather than a launcher that runs it."""
    line = process.cmdline()
    return len(line) > 1 and line[1].endswith("predict.py") or (len(line) > 2 and line[2].endswith("predict.py"))


def wait_for(condition: Callable[[], Any], seconds: float = PATIENCE, pause: float = 0.02) -> bool:
    """Whether a condition becomes true within some time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(pause)
    return bool(condition())


def environment(**more: str) -> dict[str, str]:
    """A user's environment, with one thread a rank: the same bytes are promised at one thread count."""
    clean = {key: value for key, value in os.environ.items() if key not in RANK_VARIABLES}
    return clean | {"OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "0"} | more


def command(overrides: Sequence[object], ranks: int, launcher: str) -> list[str]:
    """What a user types, for the CPU."""
    line = [str(PREDICT), "trainer.accelerator=cpu", *map(str, overrides)]
    if launcher == "torchrun":
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", *line]
    return [sys.executable, *line, *([f"trainer.devices={ranks}"] if ranks > 1 else [])]


def start(
    *overrides: object, ranks: int = 1, launcher: str = "python", folder: Path | None = None,
    preexec: Callable[[], None] | None = None, env: dict[str, str] | None = None,
) -> Job:  # fmt: skip
    """Start a job cold."""
    logs = tempfile.TemporaryDirectory()
    place = Path(logs.name)
    with (place / "stdout").open("wb") as out, (place / "stderr").open("wb") as err:
        process = subprocess.Popen(
            command(overrides, ranks, launcher), stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            cwd=folder or place, env=environment() if env is None else env, start_new_session=True, preexec_fn=preexec,
        )  # fmt: skip
    return Job(process.pid, process.wait, logs)


def predict(*overrides: object, **options: Any) -> Outcome:
    """Run a job cold, to its end."""
    return start(*overrides, **options).wait()


class Nursery:
    """A process with the imports done, that forks jobs, one after the other."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
        )
        assert self._answer() == "ready"

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def start(self, *overrides: object, folder: Path | None = None) -> Job:
        """Start a job of one rank."""
        assert self._process.stdin is not None
        logs = tempfile.TemporaryDirectory()
        arguments = command(overrides, 1, "python")[1:]
        paths = {name: str(Path(logs.name) / name) for name in ("stdout", "stderr")}
        order = {"arguments": arguments, "folder": str(folder or logs.name), **paths}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Job(int(self._answer()), lambda _: int(self._answer()), logs)

    def predict(self, *overrides: object, folder: Path | None = None) -> Outcome:
        """Run a job to its end."""
        return self.start(*overrides, folder=folder).wait()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@contextlib.contextmanager
def nursery() -> Iterator[Nursery]:
    """A Nursery for the length of a test session."""
    opened = Nursery()
    try:
        yield opened
    finally:
        opened.close()


# --- What a job left ---------------------------------------------------------------------------------------------

KINDS = ("img_emb", "metadata", "rejects")


def snapshot(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file of the output that a reader sees."""
    paths = [path for kind in KINDS for path in sorted((folder / kind).glob("**/*"))]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def everything(folder: Path) -> list[str]:
    """The names of all files and folders below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def ledger(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """Each rank's committed lines."""
    return {
        int(path.stem.removeprefix("rank_")): [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted((folder / "ranks").glob("*.jsonl"))
    }


def committed(folder: Path) -> list[tuple[int, int]]:
    """Every (shard, position) that some rank embedded, from the lines of pieces that were not assembled from others."""
    lines = [line for found in ledger(folder).values() for line in found]
    runs = [(line["shard"], line["start"], line["stop"]) for line in lines]
    first_hand = [
        (shard, start, stop)
        for shard, start, stop in runs
        if not any(other[0] == shard and start <= other[1] and other[2] <= stop for other in runs if other != (shard, start, stop))
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
    tables = [pq.read_table(path) for path in sorted((folder / "rejects").glob("*"))]
    assert all(len(table) for table in tables) and sum(map(len, tables)) == rejects
    assert not (folder / "parts").exists()
    assert not [name for name in everything(folder) if name.endswith(".tmp")]


# --- Input -------------------------------------------------------------------------------------------------------


def jpeg(seed: int, width: int = 40, height: int = 32) -> bytes:
    """A small picture of its own."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((width, height)).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """A tar of these files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_shard(path: Path, images: int, seed: int = 0) -> Path:
    """A tar of so many small pictures."""
    return write_tar(path, ((f"{seed:03d}{number:05d}.jpg", jpeg(1000 * seed + number)) for number in range(images)))


def malformed() -> dict[str, bytes]:
    """What is called an image in the wild and is none, by name."""
    sound = jpeg(7)
    png = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(png, "PNG")
    return {
        "empty": b"",
        "text": b"<html>404 Not Found</html>",
        "head": sound[:20],
        "noise": random.Random(0).randbytes(2000),
        "png": png.getvalue()[:60],
        "zeros": bytes(3000),
    }
