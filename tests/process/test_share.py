"""Several jobs on one output, without a rendezvous: they share the work, whatever is killed or frozen among them."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from helpers.jobs import (
    Gate,
    Job,
    check_layout,
    everything,
    new_folder,
    nursery,
    snapshot,
    start,
    uninterrupted,
    wait_for,
)

IMAGES = 400
SLOW = ("data.batch_size=4", "data.num_workers=1")
SHARE = ("share=true", "share_seconds=2", *SLOW)
"""Short enough for a test to wait for; a job that is given up only since the machine is slow costs double work."""


def share(output: Path, gate: Gate, ranks: int = 1) -> Job:
    return nursery().start(f"output_dir={output}", *SHARE, Gate.TYPED, ranks=ranks, **gate.options)


def opened() -> Gate:
    return Gate().open()


def is_shared(output: Path) -> bool:
    return (output / "shared" / "share.json").exists()


def cells(output: Path) -> int:
    """How many cells are committed, of shards that are not finished, and how many shards are."""
    found = [path.name for path in (output / "shared").rglob("*")] if is_shared(output) else []
    return sum(name.endswith((".done", ".finished")) for name in found)


def members(output: Path) -> int:
    """How many ranks of jobs have joined."""
    return len(list((output / "shared" / "members").iterdir()))


def check(output: Path) -> None:
    """Assert that the output is that of a job alone, and that nothing else is left."""
    assert snapshot(output) == snapshot(uninterrupted(*SLOW))
    check_layout(output, rows=IMAGES)
    left = {name for name in everything(output) if "rank_" not in name}
    assert left == {name for name in everything(uninterrupted(*SLOW)) if "rank_" not in name}


def test_three_jobs_at_once(jobs: list[Job]) -> None:
    output = new_folder() / "deep" / "output"
    gate = Gate(60)
    jobs += [share(output, gate) for _ in range(3)]
    assert wait_for(lambda: members(output) == 3)
    gate.open()
    outcomes = [job.wait().expect(0) for job in jobs]
    check(output)
    assert all("400 embeddings" in one.stdout for one in outcomes)
    again = share(output, gate)
    assert "nothing is missing" in again.wait().expect(0).stdout


def test_a_job_joins_and_the_first_is_killed(jobs: list[Job]) -> None:
    output = new_folder() / "output"
    jobs.append(share(output, Gate(60)))
    assert wait_for(lambda: cells(output) >= 1)
    jobs.append(share(output, opened(), ranks=2))
    assert wait_for(lambda: (output / "shared" / "members" / f"{10_001:09d}").exists())
    jobs[0].signal_all(signal.SIGKILL)
    jobs[1].wait().expect(0)
    check(output)


def test_all_are_killed_and_one_goes_on_alone(jobs: list[Job]) -> None:
    output = new_folder() / "output"
    jobs += [share(output, Gate(160)) for _ in range(2)]
    assert wait_for(lambda: cells(output) >= 3)
    for job in jobs:
        job.kill()
    nursery().predict(f"output_dir={output}", *SLOW, Gate.TYPED, **opened().options).expect(0)
    check(output)


@pytest.mark.parametrize("seed", range(2))
def test_kills_and_freezes_at_random_moments(seed: int, jobs: list[Job]) -> None:
    chance, output, gate = random.Random(seed), new_folder() / "output", Gate(60)
    jobs += [share(output, gate) for _ in range(2)]
    for _ in range(3):
        wait_for(lambda: cells(output) > chance.randint(0, 12), seconds=chance.uniform(0.5, 4))
        victim = chance.choice(jobs)
        if chance.random() < 0.5:
            victim.freeze()
        else:
            victim.signal_all(signal.SIGKILL)
        jobs.append(share(output, gate))
    for job in jobs:  # what goes on then has missed a lot
        job.thaw()
    assert wait_for(lambda: "embedding " in jobs[-1].stdout), jobs[-1].stderr
    gate.open()
    wait_for(lambda: cells(output) > chance.randint(4, 12), seconds=chance.uniform(0, 2))
    chance.choice(jobs[:-1]).signal_all(signal.SIGKILL)
    statuses = [job.wait().status for job in jobs]
    assert statuses[-1] == 0 and set(statuses) <= {0, -signal.SIGKILL}, [job.stderr[-2000:] for job in jobs]
    check(output)


def test_a_frozen_job_is_not_waited_for(jobs: list[Job]) -> None:
    output = new_folder() / "output"
    gate = Gate(160)
    jobs.append(share(output, gate))
    assert wait_for(lambda: cells(output) >= 2)
    jobs[0].freeze()
    jobs.append(share(output, gate.open()))
    jobs[1].wait().expect(0)
    check(output)
    jobs[0].thaw()
    jobs[0].wait().expect(0)
    check(output)


def test_what_does_not_belong_together_is_refused(jobs: list[Job]) -> None:
    output = new_folder() / "output"
    gate = Gate(60)
    jobs.append(share(output, gate))  # it is there as long as the others take
    assert wait_for(lambda: cells(output) >= 1)
    for typed, said in (
        (("data.limit=20", *SHARE), "data.limit: None there, 20 here"),
        (("share=true", "data.num_workers=1", "data.batch_size=8"), "data.batch_size: 4 there, 8 here"),
        (("output.dtype=float32", *SHARE), "output_dtype: float16 there, float32 wanted"),
        (SLOW, "another job is writing to"),
    ):
        assert said in nursery().predict(f"output_dir={output}", *typed, Gate.TYPED, **gate.options).expect(2).stderr
    several = nursery().predict(f"output_dir={new_folder()}", *SHARE, "model.adapter=[null,${demo:adapter}]")
    assert "share=true takes one adapter" in several.expect(2).stderr
    gate.open()
    jobs[0].wait().expect(0)
    check(output)


def test_ranks_of_torchrun_beside_another_job(jobs: list[Job]) -> None:
    output = new_folder() / "output"
    gate = Gate(60)
    jobs.append(start(f"output_dir={output}", *SHARE, Gate.TYPED, ranks=2, launcher="torchrun", **gate.options))
    assert wait_for(lambda: is_shared(output))
    jobs.append(share(output, gate))
    assert wait_for(lambda: members(output) == 3)
    gate.open()
    for job in jobs:
        job.wait().expect(0)
    check(output)
