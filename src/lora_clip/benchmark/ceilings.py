"""What the machine allows: images/s of decoding, of decoding and resizing on all cores, and of the model alone.

python -m lora_clip.benchmark.ceilings --base B --adapter A --shards DIR    prints them as JSON
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle
from pathlib import Path

import torch

from lora_clip.benchmark.photographs import list_photographs
from lora_clip.io.process import cores
from lora_clip.models.base import Embedder
from lora_clip.models.checkpoint import find_checkpoint
from lora_clip.models.compute import Compute, dtype_name, resolve_dtype
from lora_clip.models.embedder import MergedEmbedder
from lora_clip.pixels.decode import decode, prepare
from lora_clip.types import PreprocessSpec

SECONDS = 3.0
SAMPLE = 1000
"""Images decoded: read before, spread over the collection."""
BATCH_SIZES = {"cpu": (16, 32, 64, 128), "cuda": (64, 128, 256, 512)}


@dataclass(frozen=True)
class Ceilings:
    """Images/s of the whole machine: `forward` on all devices, at its best `batch_size`, in `dtype`."""

    decode: float
    pixels: float
    forward: float
    batch_size: int
    dtype: str
    device: str
    devices: int
    cores: int

    @property
    def binding(self) -> float:
        """What no job can pass: without a GPU pixels and forward share the cores, with one the slower part binds."""
        if self.device == "cpu":
            return 1 / (1 / self.pixels + 1 / self.forward)
        return min(self.pixels, self.forward)


def measure(base: Path, adapter: Path, shards: Path, images: int) -> Ceilings:
    """The ceilings of this machine for a model and the first `images` of a collection."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = resolve_dtype("auto", device.type)
    embedder = MergedEmbedder(find_checkpoint(str(base), str(adapter)), Compute(dtype, device))
    spec = embedder.spec
    photographs = list_photographs(shards, images)
    data = [photograph.read() for photograph in photographs[:: max(1, len(photographs) // SAMPLE)]]
    decoding, pixels = (on_all_cores(partial(work, data, spec)) for work in (decode_rate, pixel_rate))
    devices = max(1, torch.cuda.device_count())
    forward, batch_size = max((_forward(embedder, size, device), size) for size in BATCH_SIZES[device.type])
    return Ceilings(decoding, pixels, devices * forward, batch_size, dtype_name(dtype), device.type, devices, cores())


def on_all_cores(work: Callable[[], float], number: int | None = None) -> float:
    """The sum of what as many processes as there are cores, or another number of them, do at once."""
    context, number = multiprocessing.get_context("fork"), number or cores()
    barrier, results = context.Barrier(number), context.SimpleQueue()
    processes = [context.Process(target=_alongside, args=(work, barrier, results)) for _ in range(number)]
    for process in processes:
        process.start()
    total = sum(results.get() for _ in processes)
    for process in processes:
        process.join()
    return total


def _alongside(work: Callable[[], float], barrier: object, results: object) -> None:
    torch.set_num_threads(1)
    barrier.wait()  # type: ignore[attr-defined]
    results.put(work())  # type: ignore[attr-defined]


def decode_rate(data: list[bytes], spec: PreprocessSpec, seconds: float = SECONDS) -> float:
    """Images/s that one process decodes."""
    return _rate(data, lambda image: decode(image), seconds)


def pixel_rate(data: list[bytes], spec: PreprocessSpec, seconds: float = SECONDS) -> float:
    """Images/s that one process makes pixels of."""
    out_CHW = torch.empty((3, *spec.crop), dtype=torch.uint8)
    return _rate(data, lambda image: prepare(image, spec, out_CHW), seconds)


def _rate(data: list[bytes], work: Callable[[bytes], object], seconds: float) -> float:
    """Images/s of one process, over and over the same images until the time is up."""
    started = time.perf_counter()
    for done, image in enumerate(cycle(data), start=1):
        work(image)
        if (passed := time.perf_counter() - started) > seconds:
            return done / passed
    raise AssertionError("there are images")


@torch.inference_mode()
def _forward(embedder: Embedder, batch_size: int, device: torch.device) -> float:
    """Images/s of the model on one device, over the same batch again and again."""
    shape = (batch_size, 3, *embedder.spec.crop)
    pixels_BCHW = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    embedder.embed_images(pixels_BCHW)[0, 0].item()
    started, done = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < SECONDS:
        embedder.embed_images(pixels_BCHW)[0, 0].item()  # waits for the device
        done += batch_size
    return done / passed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--base", "--adapter", "--shards"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--limit", type=int, required=True)
    given = parser.parse_args()
    print(json.dumps(asdict(measure(given.base, given.adapter, given.shards, given.limit))))


if __name__ == "__main__":
    main()
