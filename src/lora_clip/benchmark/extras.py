"""What a table of rates does not show: `data.decode=fast`, several adapters, and memory over the collection's size."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from statistics import median

import numpy as np
import psutil

from lora_clip.benchmark.collection import Collection, make
from lora_clip.benchmark.measure import BenchmarkError, Timing, measure, run
from lora_clip.benchmark.patterns import Material, ours
from lora_clip.pixels.decode import EXACT, FAST

MEMORY_SIZES = (3_000, 15_000)
LOOK_EVERY = 0.1
ADAPTERS = 3
START_IMAGES = 10
UNAVOIDABLE = """
import os, sys, hydra, lightning.pytorch, peft, torch, transformers
transformers.CLIPVisionModelWithProjection
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        file.read()
os._exit(0)  # without the second that Python would take its objects apart for
"""
"""What no CLIP job of Lightning, Hydra, transformers and PEFT can do without."""


def large_photographs(folder: Path, images: int) -> Path:
    """So many photographs of 12 megapixels, made where they are not there yet."""
    return make(folder / f"large-{images}", Collection(images, large_share=1.0))


def decoding(material: Material, folder: Path, images: int, seconds: float, repeats: int, scratch: Path) -> str:
    """Both ways of decoding 12-megapixel photographs: images/s of the job, and the cosine between the embeddings."""
    large = Material(material.base, material.adapter, large_photographs(folder, images))
    patterns = [ours(large, ["auto"], [f"data.decode={way}", "output.dtype=float32"])[0] for way in (EXACT, FAST)]
    exact, fast = measure(patterns, images, seconds, repeats, scratch)
    cosines = _cosines(exact, fast, images, scratch)
    if exact.rate is None or fast.rate is None:
        rates = "too few to tell data.decode=exact and fast apart"
    else:
        rates = f"data.decode=exact {exact.rate:,.1f} images/s, fast {fast.rate:,.1f} ({fast.rate / exact.rate:.2f} x)"
    return (
        f"{images:,} photographs of 12 megapixels: {rates}; "
        f"cosine of fast to exact: at least {cosines.min():.6f}, mean {cosines.mean():.6f}"
    )


def _cosines(exact: Timing, fast: Timing, images: int, scratch: Path) -> np.ndarray:
    """The cosine of each image's two embeddings."""
    both = []
    for timing in (exact, fast):
        run(timing.pattern, images, scratch)
        files = sorted((scratch / "output" / "img_emb").glob("*.npy"))
        both.append(np.concatenate([np.load(file) for file in files]).astype(np.float64))
    return np.sum(both[0] * both[1], axis=1) / np.prod([np.linalg.norm(one, axis=1) for one in both], axis=0)


def one_pass(
    material: Material, images: int, seconds: float, repeats: int, scratch: Path, what: str = "photographs"
) -> str:
    """Several adapters in one pass against one: their images/s, what an image costs more, and what a whole process."""
    adapters = [scratch / "adapters" / str(number) for number in range(ADAPTERS)]
    for adapter in adapters:
        adapter.parent.mkdir(exist_ok=True)
        adapter.unlink(missing_ok=True)
        adapter.symlink_to(material.adapter.resolve())
    patterns = [ours(material, ["auto"])[0], ours(material, ["auto"], adapters=adapters)[0]]
    one, all_ = measure(patterns, images, seconds, repeats, scratch)
    size = min(one.sizes[1], all_.sizes[1])
    whole = median(all_.seconds[size]) / median(one.seconds[size])
    start = f"{ADAPTERS} adapters in one pass over {what} against one: {whole:.2f} x the time for {size:,} images"
    if one.rate is None or all_.rate is None:
        return f"{start}; too few images to tell what one more costs"
    return f"{start}; without start and end {one.rate / all_.rate:.2f} x ({one.rate:,.1f} images/s, {all_.rate:,.1f})"


def start(material: Material, repeats: int, scratch: Path) -> str:
    """From the start of the process to its first batch through the model, beside the imports that it cannot avoid."""
    pattern, firsts, alone = ours(material, ["auto"])[0], [], []
    weights = [str(path) for folder in (material.base, material.adapter) for path in folder.glob("*.safetensors")]
    for _ in range(repeats):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", UNAVOIDABLE, *weights], check=True)
        alone.append(time.perf_counter() - began)
        run(pattern, START_IMAGES, scratch)
        manifest = json.loads((scratch / "output" / "manifest.json").read_text())
        firsts.append(manifest["run"]["startup_seconds"])
    first, imports = median(firsts), median(alone)
    return (
        f"start: {first:.1f} s to the first batch through the model, {imports:.1f} s for its imports and the reading "
        f"of its weights alone: {first / imports:.2f} x"
    )


def memory(material: Material, images: int, scratch: Path) -> str:
    """Peak memory of the whole job over two sizes of collection."""
    sizes = [min(size, images) for size in MEMORY_SIZES]
    peaks = [_peak(material, size, scratch) for size in sizes]
    told = ", ".join(f"{peak / 2**20:,.0f} MiB over {size:,} images" for peak, size in zip(peaks, sizes, strict=True))
    return f"peak memory of all processes (PSS): {told}: {peaks[1] / peaks[0]:.3f} x"


def _peak(material: Material, images: int, scratch: Path) -> float:
    """The most bytes that the processes of a job held together, shared pages counted once."""
    pattern, peak = ours(material, ["auto"])[0], 0.0
    command = [str(part) for part in pattern.command(images, scratch / f"memory-{images}")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, _held(process.pid))
        time.sleep(LOOK_EVERY)
    if process.returncode or not math.isfinite(peak):
        raise BenchmarkError(f"{' '.join(command)} ended with {process.returncode}")
    return peak


def _held(pid: int) -> float:
    """PSS of a process and its descendants, in bytes; one that ends meanwhile holds nothing."""
    held = 0.0
    with suppress(psutil.Error):
        whole = psutil.Process(pid)
        for process in (whole, *whole.children(recursive=True)):
            with suppress(psutil.Error):
                held += process.memory_full_info().pss
    return held
