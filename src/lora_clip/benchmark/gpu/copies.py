"""How fast a batch of pixels comes to the device, by the kind of memory that it lies in, and what making that costs."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

from lora_clip.benchmark.gpu.findings import Figure, Findings, UnavailableError
from lora_clip.benchmark.gpu.sizes import Settings
from lora_clip.benchmark.gpu.timing import first_seconds, seconds_a_call
from lora_clip.loading.direct import lock_pages, unlock_pages

PIXELS = (3, 224, 224)


def measure(settings: Settings, findings: Findings) -> None:
    """Tell the rates of one batch. Raises UnavailableError without a GPU."""
    if not torch.cuda.is_available():
        raise UnavailableError("no CUDA")
    shape, device = (settings.sizes.batches[0], *PIXELS), settings.device
    pageable, on_device = (torch.ones(shape, dtype=torch.uint8, device=place) for place in ("cpu", device))
    rate = partial(_rate, settings, on_device.nbytes)
    findings.attempt(partial(rate, on_device, pageable), copy="to the device, pageable")
    findings.attempt(partial(rate, on_device, pageable.pin_memory()), copy="to the device, pinned")
    findings.attempt(partial(_from_registered, settings, on_device), copy="to the device, registered shared memory")
    findings.attempt(partial(rate, pageable.pin_memory(), on_device), copy="to the host, pinned")
    findings.attempt(partial(_pinning, settings, pageable), copy="on the host, pin_memory()")
    findings.attempt(partial(_registering, settings, on_device.nbytes), copy="registering shared memory")


def _rate(settings: Settings, size: int, target: torch.Tensor, source: torch.Tensor) -> Figure:
    work = partial(target.copy_, source, non_blocking=True)
    seconds = seconds_a_call(work, settings.device, settings.sizes.seconds / 2)
    return Figure(round(size / seconds / 1e9, 2), "GB/s", f"{1e3 * seconds:.3f} ms for {size / 1e6:.1f} MB")


def _pinning(settings: Settings, pageable: torch.Tensor) -> Figure:
    """What a copying thread does with each batch; registered memory would save it."""
    seconds = seconds_a_call(pageable.pin_memory, settings.device, settings.sizes.seconds / 2)
    return Figure(round(pageable.nbytes / seconds / 1e9, 2), "GB/s", f"{1e3 * seconds:.3f} ms a batch")


def _from_registered(settings: Settings, on_device: torch.Tensor) -> Figure:
    memory = mmap.mmap(-1, on_device.nbytes)  # as the ring's is made
    shared = torch.frombuffer(memory, dtype=torch.uint8).view(on_device.shape)
    shared.fill_(1)
    with registered(shared):
        found = _rate(settings, on_device.nbytes, on_device, shared)
        return found._replace(note=f"{found.note}, is_pinned() says {shared.is_pinned()}")


def _registering(settings: Settings, size: int) -> Figure:
    shared = torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)
    shared.fill_(1)  # else it would be the pages that are paid for
    with registered(shared):
        pass

    def again() -> None:
        with registered(shared):
            pass

    seconds = first_seconds(again, settings.device)
    return Figure(round(1e3 * seconds, 3), "ms", f"of {size / 1e6:.1f} MB, once a buffer, its end included")


@contextmanager
def registered(memory: torch.Tensor) -> Iterator[None]:
    """Host memory page-locked for CUDA where it lies. Raises ConfigError where CUDA refuses."""
    lock_pages(memory)
    try:
        yield
    finally:
        torch.cuda.synchronize()  # copies from it are done
        unlock_pages(memory)
