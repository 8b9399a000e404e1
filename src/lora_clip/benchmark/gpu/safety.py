"""What must hold on a GPU as on a CPU: the same bytes whatever happens, and plain words where memory ends."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import torch

from lora_clip.benchmark.digest import digest
from lora_clip.benchmark.gpu.findings import Figure, Findings, UnavailableError
from lora_clip.benchmark.gpu.jobs import run, scratch, start
from lora_clip.benchmark.gpu.sizes import Settings
from lora_clip.io.process import cores

EQUAL, DIFFERENT, SAID = "equal", "different", "said in a message"
LOOK_EVERY = 0.002
FEW = 8
SANITIZER = "compute-sanitizer"
ERRORS = re.compile(r"ERROR SUMMARY: (\d+) errors?")


def same_bytes(settings: Settings, findings: Findings) -> None:
    """Tell the SHA-256 of all files that a reader sees, of jobs with other workers, and of one killed and resumed."""
    found: list[str] = []
    for workers in dict.fromkeys((cores(), 2, 1)):
        with scratch(settings) as output:
            _embed(settings, output, f"data.num_workers={workers}")
            found.append(digest(output))
        findings.add(Figure(found[-1][:16], note="the SHA-256 of all begins so"), bytes_of=f"workers: {workers}")
    findings.add(_compared(found), same="over workers")
    with scratch(settings) as output:
        note, whole = _killed(settings, output)
        _embed(settings, output)
        findings.add(_compared([found[0], digest(output)], note, whole), same="after a kill and a resume")


def _embed(settings: Settings, output: Path, *overrides: str) -> None:
    run(settings, settings.sizes.small, settings.sizes.checked, output, *overrides)


def _compared(digests: list[str], note: str = "", proven: bool = True) -> Figure:
    same = len(set(digests)) == 1
    return Figure((EQUAL if proven else None) if same else DIFFERENT, note=note)


def _killed(settings: Settings, output: Path) -> tuple[str, bool]:
    """A job killed, with all its processes, after its first committed file: what it left, and whether work was left."""
    # two workers: with many, all files would be committed within a few milliseconds
    process = start(settings, settings.sizes.small, settings.sizes.checked, output, "data.num_workers=2")
    try:
        while process.poll() is None and not any((output / "img_emb").glob("*.npy")):
            time.sleep(LOOK_EVERY)
    finally:
        _kill(process)
    files = len(list((output / "img_emb").glob("*.npy")))
    if (output / "manifest.json").exists() or not files:
        return f"it ended by itself before it was killed, with {process.returncode}", False
    total = settings.sizes.checked // settings.sizes.photographs
    return f"killed with {files} of {total} files committed", files < total


def _kill(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def out_of_memory(settings: Settings, findings: Findings) -> None:
    """Tell how a job ends whose batch fits no memory: with a message and its own status, and without a traceback."""
    sizes, workers = settings.sizes, 0 if torch.cuda.is_available() else 1
    hog = _hog(settings)
    with scratch(settings) as output:
        overrides = (f"data.batch_size={sizes.batch_too_large}", f"data.num_workers={workers}")
        process = start(settings, sizes.small, sizes.checked, output, *overrides)
        _, said = process.communicate()
    del hog
    findings.add(_judged(process.returncode, said), memory=f"data.batch_size={sizes.batch_too_large}")


def _hog(settings: Settings) -> torch.Tensor | None:
    """Nearly all memory of the GPU, taken, so that a batch need not be as large as that of a whole H200."""
    if not torch.cuda.is_available():
        return None
    free, _ = torch.cuda.mem_get_info(settings.device)
    size = max(0, free - settings.sizes.left_bytes)
    return torch.empty(size, dtype=torch.uint8, device=settings.device)


def _judged(status: int, said: str) -> Figure:
    as_meant = status > 0 and "error: out of memory" in said and "Traceback" not in said
    last = " ".join(said.split())[-200:]
    return Figure(SAID if as_meant else "not said as meant", note=f"status {status}: {last}")


def sanitizer(settings: Settings, findings: Findings) -> None:
    """Tell what memcheck finds in two batches. Raises UnavailableError where it, or a GPU, is not here."""
    if not torch.cuda.is_available():
        raise UnavailableError("no CUDA")
    if shutil.which(SANITIZER) is None:
        raise UnavailableError(f"no {SANITIZER} on the PATH")
    os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # of a block that PyTorch keeps, no end is seen
    log = settings.folder / "gpu" / "sanitizer.txt"
    log.unlink(missing_ok=True)
    before = (SANITIZER, "--tool", "memcheck", "--log-file", str(log))
    two = (f"data.limit={2 * FEW}", f"data.batch_size={FEW}", "data.num_workers=0")
    with scratch(settings) as output:
        sizes = settings.sizes
        process = start(settings, sizes.small, sizes.checked, output, *two, before=before)
        _, said = process.communicate()
    text = log.read_text("utf-8", "replace") if log.exists() else ""
    findings.add(_errors_in(text, process.returncode, said), sanitizer=f"two batches of {FEW}")


def _errors_in(log: str, status: int, said: str) -> Figure:
    found = ERRORS.search(log)
    last = " ".join((said or log).split())[-200:]
    return Figure(int(found[1]) if found and status == 0 else None, "errors", f"status {status}: {last}")
