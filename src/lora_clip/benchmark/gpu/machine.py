"""The machine, as far as its figures depend on it: versions, the GPU's clocks and its way to the host, the cores."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from lora_clip.benchmark.gpu.findings import Figure, Findings
from lora_clip.benchmark.gpu.sizes import Settings
from lora_clip.benchmark.gpu.timing import seconds_a_call
from lora_clip.benchmark.run import processor
from lora_clip.io.process import cores
from lora_clip.terminal import size_of

PACKAGES = ("torch", "triton", "transformers", "lightning", "peft", "simplejpeg", "torchvision", "nvidia-ml-py")
ASKED = {
    "driver_version": "",
    "pstate": "",
    "clocks.sm": "MHz",
    "clocks.max.sm": "MHz",
    "clocks.mem": "MHz",
    "clocks.max.mem": "MHz",
    "power.draw": "W",
    "power.limit": "W",
    "temperature.gpu": "°C",
    "pcie.link.gen.current": "",
    "pcie.link.gen.max": "",
    "pcie.link.width.current": "lanes",
    "pcie.link.width.max": "lanes",
    "ecc.mode.current": "",
}
"""What nvidia-smi is asked, with units."""
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8")
"""What of a CPU's flags matters to products."""
SQUARE = 8192


def describe(settings: Settings, findings: Findings) -> None:
    """Tell all of it."""
    findings.add(Figure(platform.python_version()), version="python")
    for name in PACKAGES:
        findings.add(Figure(_version(name)), version=name)
    _tell_host(findings)
    if not torch.cuda.is_available():
        findings.add(Figure("none", note="no CUDA"), gpu="name")
        return
    _tell_gpu(findings)
    try:
        said = _ask_nvidia_smi()
    except Exception as error:  # a help to read the other figures by, no condition of theirs
        findings.fail(error, gpu="nvidia-smi")
        return
    for name, (value, unit) in said.items():
        findings.add(Figure(value, unit, "while it computes"), gpu=name)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _tell_host(findings: Findings) -> None:
    """The cores, memory and shared memory."""
    findings.add(Figure(processor(), note=f"{cores()} of {os.cpu_count()} cores may be used"), host="cpu")
    findings.attempt(lambda: Figure(" ".join(flag for flag in FLAGS if flag in _flags()) or "none"), host="cpu flags")
    findings.add(Figure(size_of(psutil.virtual_memory().total)), host="memory")
    findings.attempt(lambda: Figure(size_of(psutil.disk_usage("/dev/shm").total)), host="/dev/shm")


def _flags() -> set[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return set(next((line for line in lines if line.startswith(("flags", "Features"))), "").split())


def _tell_gpu(findings: Findings) -> None:
    """What PyTorch knows of it."""
    properties = torch.cuda.get_device_properties(0)
    number = torch.cuda.device_count()
    findings.add(Figure(properties.name, note=f"the first of {number}" if number > 1 else ""), gpu="name")
    findings.add(Figure(f"{properties.major}.{properties.minor}"), gpu="compute capability")
    findings.add(Figure(properties.multi_processor_count), gpu="multiprocessors")
    findings.add(Figure(size_of(properties.total_memory)), gpu="memory")
    findings.add(Figure(torch.version.cuda), version="CUDA of torch")
    findings.attempt(lambda: Figure(str(torch.backends.cudnn.version())), version="cuDNN")


def _ask_nvidia_smi() -> dict[str, tuple[str, str]]:
    """Its answers. It is asked while the GPU computes: an idle one lowers its clocks and its PCIe generation."""
    uuid = str(torch.cuda.get_device_properties(0).uuid)
    command = ["nvidia-smi", f"--query-gpu={','.join(ASKED)}", "--format=csv,noheader,nounits", f"--id=GPU-{uuid}"]
    matrix = torch.randn(SQUARE, SQUARE, dtype=torch.float16, device="cuda")
    work = partial(torch.mm, matrix, matrix, out=torch.empty_like(matrix))
    seconds_a_call(work, torch.device("cuda", 0), 0.5)  # until clocks have risen
    asked = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while asked.poll() is None:
        work()
        torch.cuda.synchronize()
    said, _ = asked.communicate()
    if asked.returncode:
        raise RuntimeError(f"nvidia-smi: {' '.join(said.split())[:200]}")
    values = [value.strip() for value in said.strip().splitlines()[0].split(",")]
    return {name: (value, unit) for (name, unit), value in zip(ASKED.items(), values, strict=True)}
