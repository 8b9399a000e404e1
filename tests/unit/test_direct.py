"""Copies to a GPU straight from the workers' buffers, on a stand-in for CUDA that notes what it is asked."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.jobs import nursery
from lora_clip.errors import ConfigError
from lora_clip.loading import direct
from lora_clip.loading.direct import DirectCopies
from lora_clip.loading.ring import Ring, SharedBatch
from lora_clip.types import PixelBatch, WorkRange

CPU = torch.device("cpu")
SHAPE = (2, 3, 4, 4)


class Cuda:
    """What `direct` uses of torch.cuda; the copy of a batch is over when its event is waited for."""

    def __init__(self, refuses: bool = False) -> None:
        self.asked: list[Any] = []
        self.refuses = refuses

    def Stream(self, device: torch.device) -> str:
        return "copies"

    def current_stream(self, device: torch.device) -> str:
        return "computes"

    @contextlib.contextmanager
    def stream(self, stream: str) -> Iterator[None]:
        self.asked.append(f"on {stream}")
        yield

    def Event(self, blocking: bool) -> Cuda:
        assert blocking, "others spin on a core for decoding"
        return self

    def record(self) -> None:
        self.asked.append("record")

    def synchronize(self) -> None:
        self.asked.append("wait")

    def cudart(self) -> Cuda:
        return self

    def cudaHostRegister(self, start: int, size: int, flags: int) -> int:
        self.asked.append(("lock", start, size))
        return int(self.refuses)

    def cudaHostUnregister(self, start: int) -> None:
        self.asked.append(("unlock", start))

    def check_error(self, status: int) -> None:
        if status:
            raise RuntimeError("CUDA error: out of memory")


def put_in_place(monkeypatch: pytest.MonkeyPatch, cuda: Cuda) -> Cuda:
    monkeypatch.setattr(direct, "cuda", cuda)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _, stream: cuda.asked.append(f"read on {stream}"))
    monkeypatch.setattr(Ring, "release", lambda _, slot: cuda.asked.append(f"release {slot.index}"))
    return cuda


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    return put_in_place(monkeypatch, Cuda())


def taken(ring: Ring, value: int) -> SharedBatch:
    """A batch as it comes from a worker, full of one value."""
    pixels_BCHW, slot = ring.take(0)
    pixels_BCHW[:] = value
    return SharedBatch(pixels_BCHW, [], [], WorkRange(0, 0, 2), last=True, bytes=value, slot=slot)


def test_a_buffer_is_released_after_its_copy_and_the_ring_is_locked_once(cuda: Cuda) -> None:
    ring, copies = Ring(2, 2, SHAPE), DirectCopies(CPU)
    for value in (1, 2):
        arrived = copies(taken(ring, value))
        assert type(arrived) is PixelBatch and arrived.pixels_BCHW.unique().tolist() == [value]
        assert (arrived.bytes, arrived.work, arrived.last) == (value, WorkRange(0, 0, 2), True)
    a_copy = ["on copies", "record", "wait", "read on computes"]
    locked = ("lock", ring.memory.data_ptr(), 2 * 2 * 2 * 3 * 4 * 4)
    assert cuda.asked == [locked, *a_copy, "release 0", *a_copy, "release 1"]


def test_another_ring_is_locked_too_and_one_that_goes_is_unlocked(cuda: Cuda) -> None:
    first, second, copies = Ring(1, 2, SHAPE), Ring(1, 2, SHAPE), DirectCopies(CPU)
    for ring in (first, second, first):
        copies(taken(ring, 1))
    starts = [first.memory.data_ptr(), second.memory.data_ptr()]
    assert [one[1] for one in cuda.asked if one[0] == "lock"] == starts
    del ring, first
    gc.collect()
    assert [one[1] for one in cuda.asked if one[0] == "unlock"] == starts[:1]


def test_what_cuda_refuses_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_place(monkeypatch, Cuda(refuses=True))
    ring = Ring(1, 2, SHAPE)
    with pytest.raises(ConfigError, match=r"cannot page-lock .* buffers .*out of memory.* data.copies=pinned"):
        DirectCopies(CPU)(taken(ring, 1))


def test_a_job_on_a_cpu_is_told_that_nothing_is_copied(tmp_path: Path) -> None:
    outcome = nursery().predict(f"output_dir={tmp_path / 'output'}", "data.copies=direct").expect(2)
    assert "data.copies=direct is for GPUs that CUDA knows, not for cpu" in outcome.stderr
