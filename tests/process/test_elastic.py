"""Ranks and nodes that come and go under torchrun: real kills, and what is committed is never done again."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from helpers.jobs import (
    PROJECT,
    Gate,
    Job,
    check_layout,
    committed,
    free_port,
    ledger,
    lora_clip,
    nursery,
    snapshot,
    start_line,
    wait_for,
    write_shard,
)

SHARDS, PER_SHARD = 24, 10
IMAGES = SHARDS * PER_SHARD
PATIENCE = 180.0
SCRIPT = PROJECT / "examples/clusters/elastic.sh"


class Gated:
    """A job that begins, commits something at each start, and ends only when the gate is opened."""

    def __init__(self, shards: Path, folder: Path) -> None:
        self.shards, self.output, self.gate = shards, folder / "output", Gate(25)
        self.jobs: list[Job] = []

    @property
    def typed(self) -> list[str]:
        """What is typed after the command."""
        return [
            "data=shards", f"data.shards={self.shards}", f"output_dir={self.output}", "data.batch_size=4",
            "data.num_workers=1", Gate.TYPED, "trainer.accelerator=cpu",
        ]  # fmt: skip

    def finish(self) -> None:
        """Open the gate, and do what is missing."""
        nursery().predict(*self.typed, **self.gate.open().options).expect(0)

    def start_impatient(self, ranks: int) -> Job:
        """Start it with ranks that give one another up soon, once the gate is open."""
        script = str(PROJECT / "tests/helpers/impatient.py")
        self.jobs.append(
            job := nursery().start_script([script, *self.typed], ranks, self.gate.folder, self.gate.variables)
        )
        return job

    def start(self, *launcher: str, **more: str) -> Job:
        """Start one node of it."""
        more |= {**self.gate.variables, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        job = start_line([*launcher, *self.typed], more, self.gate.folder)
        self.jobs.append(job)
        return job

    def lines(self) -> list[tuple[int, int, int]]:
        """What is committed."""
        return [(line["shard"], line["start"], line["stop"]) for own in ledger(self.output).values() for line in own]

    def wait_for_more(self) -> list[tuple[int, int, int]]:
        """Wait until more is committed; all of it."""
        before = len(self.lines())
        assert wait_for(lambda: len(self.lines()) > before, PATIENCE), self.told()
        return self.lines()

    def told(self) -> str:
        return "\n".join(job.stdout + job.stderr for job in self.jobs)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(SHARDS):
        write_shard(folder / f"{shard:02d}.tar", PER_SHARD, seed=shard)
    return folder


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The output that one rank writes without any of this."""
    alone = Gated(shards, tmp_path_factory.mktemp("undisturbed"))
    alone.finish()
    return snapshot(alone.output)


@pytest.fixture
def gated(shards: Path, tmp_path: Path) -> Iterator[Gated]:
    made = Gated(shards, tmp_path)
    yield made
    for job in made.jobs:
        job.kill()


def ranks_of(job: Job) -> dict[int, psutil.Process]:
    """The living ranks of a node: what its torchrun has started."""
    members = {process.pid: process for process in job.members()}
    found = {}
    for process in members.values():
        with contextlib.suppress(psutil.Error):
            parent = members.get(process.ppid())
            if "RANK" in process.environ() and parent is not None and "RANK" not in parent.environ():
                found[int(process.environ()["RANK"])] = process
    return found


def kill_a_rank(job: Job, rank: int) -> None:
    """Kill it, and wait until others were started in the place of all."""
    before = {process.pid for process in ranks_of(job).values()}
    ranks_of(job)[rank].kill()
    assert wait_for(lambda: (now := ranks_of(job)) and not before & {one.pid for one in now.values()}, PATIENCE)


def check_complete(gated: Gated, undisturbed: dict[str, str]) -> None:
    check_layout(gated.output, rows=IMAGES)
    assert len(committed(gated.output)) == len(set(committed(gated.output))) == IMAGES, "something was done twice"
    assert snapshot(gated.output) == undisturbed


@pytest.mark.timeout(900)
def test_nodes_come_and_go(gated: Gated, undisturbed: dict[str, str]) -> None:
    """A node, a second one that joins late, a rank that is killed, and the second node killed as a whole."""
    place = {"HEAD": f"localhost:{free_port()}", "RANKS": "1", "JOIN": "1"}
    first = gated.start(str(SCRIPT), **place)
    alone = gated.wait_for_more()
    second = gated.start(str(SCRIPT), **place)
    assert wait_for(lambda: 1 in ledger(gated.output), PATIENCE), gated.told()
    both = gated.lines()
    kill_a_rank(second, next(iter(ranks_of(second))))
    again = gated.wait_for_more()
    second.signal_all(signal.SIGKILL)
    gated.gate.open()
    first.wait(PATIENCE).expect(0)
    assert set(alone) < set(both) < set(again) <= set(gated.lines())
    assert lora_clip("verify", gated.output).returncode == 0
    check_complete(gated, undisturbed)


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_rank_is_given_up(gated: Gated, undisturbed: dict[str, str], frozen: int) -> None:
    """It closes no connection; rank 0 has the store of the job as well, and whoever asks that waits for ever."""
    job = gated.start_impatient(ranks=2)
    assert wait_for(lambda: len(ledger(gated.output)) == 2, PATIENCE), job.stderr
    ranks = sorted(psutil.Process(job.pid).children(), key=lambda rank: (rank.create_time(), rank.pid))
    for process in (ranks[frozen], *ranks[frozen].children()):
        process.suspend()
    before = gated.lines()
    gated.gate.open()
    assert wait_for(lambda: not ranks[1 - frozen].is_running(), PATIENCE), job.stderr
    told = (
        f"error: rank {frozen} was not heard of for 4 s: frozen, or cut off from this one. Type the same command again"
    )
    assert job.stderr.count("error: ") == job.stderr.count(told) == 1, job.stderr
    assert not (gated.output / "manifest.json").exists()
    job.signal_all(signal.SIGKILL)
    assert job.gone(PATIENCE), job.members()
    gated.finish()
    assert set(before) <= set(gated.lines())
    check_complete(gated, undisturbed)
