"""Two nodes, each with a network of its own, under torchrun: with storage that both see, and without."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from helpers.jobs import PREDICT, Job, check_layout, snapshot, start_line, uninterrupted
from helpers.networks import ADDRESSES, CABLE, NotHereError, two_nodes

IMAGES = 64
TYPED = ("data.batch_size=8", "data.num_workers=1", f"data.limit={IMAGES}", "trainer.accelerator=cpu")
PATIENCE = 120.0
HIDING = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"')
"""A command that runs what follows, where the folder that comes first is another one, and empty."""


@pytest.fixture
def nodes() -> Iterator[list[list[str]]]:
    with two_nodes() as entries:
        yield entries


@pytest.fixture(scope="module", autouse=True)
def _possible(tmp_path_factory: pytest.TempPathFactory) -> None:
    hidden = [*HIDING, str(tmp_path_factory.mktemp("hidden")), "true"]
    try:
        with two_nodes():
            if subprocess.run(hidden, capture_output=True, check=False).returncode:
                raise NotHereError
    except NotHereError:
        pytest.skip("namespaces take root, ip, and a kernel that has them")


def start_nodes(entries: Sequence[Sequence[str]], output: Path, hidden: Sequence[str] = ()) -> list[Job]:
    """A torchrun on each node; the second one runs below `hidden`."""
    jobs = []
    for number, (entry, address) in enumerate(zip(entries, ADDRESSES, strict=True)):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
        meeting = ["--rdzv_backend=c10d", f"--rdzv_endpoint={ADDRESSES[0]}:29500", f"--local-addr={address}"]
        meeting += [f"--rdzv_conf=is_host={1 - number}"]  # names tell nothing here: both nodes have one
        line = [*entry, *(hidden if number else ()), *torchrun, *meeting, str(PREDICT), f"output_dir={output}", *TYPED]
        jobs.append(start_line(line, {"GLOO_SOCKET_IFNAME": CABLE}))
    return jobs


def end(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.signal_all(signal.SIGKILL)


def test_two_nodes_write_what_one_does(nodes: list[list[str]], tmp_path: Path) -> None:
    output = tmp_path / "output"
    jobs = start_nodes(nodes, output)
    try:
        for job in jobs:
            job.wait(PATIENCE).expect(0)
    finally:
        end(jobs)
    check_layout(output, rows=IMAGES)
    assert len(json.loads((output / "manifest.json").read_text())["run"]["images_by_rank"]) == 2
    assert snapshot(output) == snapshot(uninterrupted(*TYPED))


def test_nodes_that_share_no_storage_are_told_so(nodes: list[list[str]], tmp_path: Path) -> None:
    output = tmp_path / "output"
    jobs = start_nodes(nodes, output, [*HIDING, str(tmp_path)])
    try:
        outcomes = [job.wait(PATIENCE) for job in jobs]
    finally:
        end(jobs)
    assert all(outcome.status for outcome in outcomes), outcomes
    told = f"[rank 1] error: {output / 'inputs.jsonl'} is not there: all nodes of a job need one output_dir"
    assert told in outcomes[1].stderr, outcomes
    assert not (output / "manifest.json").exists()
