"""processes: none outlives its parent, and none counts cores that it may not use."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from lora_clip.io import process

BOUND = """
import sys, time
from lora_clip.io import process
if {elsewhere}:
    sys.platform, process.SECONDS_BETWEEN_LOOKS = "darwin", 0.01
process.end_with_parent()
print("ready", flush=True)
time.sleep(60)
"""
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_process_ends_with_its_parent_however_that_dies(elsewhere: bool) -> None:
    code = BOUND.format(elsewhere=elsewhere)
    with subprocess.Popen([sys.executable, "-c", PARENT, code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "it outlives its parent"
        time.sleep(0.01)


def test_imports_are_not_walked_by_the_collector_and_what_comes_after_them_is() -> None:
    try:
        process.pause_collection()
        assert not gc.isenabled()
        process.resume_collection()
        assert gc.isenabled()
        assert gc.get_freeze_count() > 1000
    finally:
        gc.unfreeze()
        gc.enable()


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 7}, raising=False)
    assert process.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert process.cores() == 6
