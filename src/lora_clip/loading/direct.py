"""Copies to a GPU from the very buffers that workers decode into: `data.copies=direct`.

The ring is page-locked where it lies, so no thread copies each batch into page-locked memory first. It has not run on a
GPU yet; `lora-clip benchmark --gpu` measures it (steps `copies` and `settings`).
"""

from __future__ import annotations

import weakref

import torch
from torch import cuda

from lora_clip.errors import ConfigError
from lora_clip.loading.ring import Ring, SharedBatch, ring_of
from lora_clip.types import PixelBatch

PINNED, DIRECT = "pinned", "direct"


def require_cuda(device: torch.device) -> None:
    """Raises ConfigError where batches are not copied to a GPU of NVIDIA's or AMD's."""
    if device.type != "cuda":
        raise ConfigError(f"data.copies={DIRECT} is for GPUs that CUDA knows, not for {device.type}")


class DirectCopies:
    """Brings SharedBatches to a CUDA device, on a stream of its own: the device computes on meanwhile."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = cuda.Stream(device)
        self._locked: weakref.WeakSet[Ring] = weakref.WeakSet()

    def __call__(self, batch: SharedBatch) -> PixelBatch:
        """The batch on the device, and its buffer free again. Raises ConfigError where CUDA refuses the ring."""
        assert batch.slot is not None
        self._lock(ring_of(batch.slot))
        with cuda.stream(self._stream):
            pixels_BCHW = batch.pixels_BCHW.to(self.device, non_blocking=True)
            copied = cuda.Event(blocking=True)
            copied.record()
        copied.synchronize()  # the copy alone is waited for: the worker may write there again
        # else the allocator would give this memory to a later copy while the model still reads it
        pixels_BCHW.record_stream(cuda.current_stream(self.device))
        batch.release()
        return PixelBatch(pixels_BCHW, **batch.told())

    def _lock(self, ring: Ring) -> None:
        """Page-lock a ring, once: there is another one after a worker was lost."""
        if ring not in self._locked:
            lock_pages(ring.memory)
            # not when the process ends: CUDA may be gone by then
            weakref.finalize(ring, unlock_pages, ring.memory).atexit = False
            self._locked.add(ring)


def lock_pages(memory: torch.Tensor) -> None:
    """Page-lock host memory where it lies, so that CUDA copies from it without the host's help.

    Raises ConfigError where CUDA refuses.
    """
    try:
        cuda.check_error(cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0))
    except RuntimeError as error:
        raise ConfigError(
            f"data.copies={DIRECT}: CUDA cannot page-lock the workers' {memory.nbytes / 1e6:,.0f} MB of buffers "
            f"({error}); data.copies={PINNED} needs less, as do fewer workers and smaller batches"
        ) from error


def unlock_pages(memory: torch.Tensor) -> None:
    """Let page-locked memory be ordinary memory again, once all copies from it are done."""
    cuda.cudart().cudaHostUnregister(memory.data_ptr())
