"""Steps of a GPU benchmark that go wrong in every way, as their processes are told to run them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from lora_clip.benchmark.gpu.findings import Figure, Findings
from lora_clip.benchmark.gpu.sizes import Settings


def well(settings: Settings, findings: Findings) -> None:
    findings.attempt(lambda: Figure(1 / 0), of="zero")
    findings.add(Figure(7.5, "GB/s", settings.work), of="well")


def overrun(settings: Settings, findings: Findings) -> None:
    """It waits for ever, and so does what it started, in a process group of its own."""
    program = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
    started = subprocess.Popen(program, process_group=0)
    findings.add(Figure(started.pid), of="pid")
    time.sleep(600)


def crash(settings: Settings, findings: Findings) -> None:
    findings.add(Figure(1), of="before")
    raise ValueError("the wheel came off")


def die(settings: Settings, findings: Findings) -> None:
    print("last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
