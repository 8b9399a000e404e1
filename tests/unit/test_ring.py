"""Shared pixel buffers: nothing is copied on the way, and none is filled again before it was released."""

from __future__ import annotations

import multiprocessing
import pickle
import select
from typing import Any

import pytest
import torch

from lora_clip.loading.encoded import empty_batch, room
from lora_clip.loading.ring import Ring, SharedBatch
from lora_clip.types import ImageRow, PixelBatch, WorkRange

SHAPE = (2, 3, 4, 4)
FORK = multiprocessing.get_context("fork")


def batch_of(ring: Ring, worker: int, value: int) -> SharedBatch:
    pixels_BCHW, slot = ring.take(worker)
    pixels_BCHW[:] = value
    return SharedBatch(pixels_BCHW, [], [], WorkRange(0, value, value + 2), True, {"read": 1.0}, slot=slot)


def fill(ring: Ring, worker: int, count: int, queue: multiprocessing.SimpleQueue[bytes]) -> None:
    for value in range(count):
        queue.put(pickle.dumps(batch_of(ring, worker, value)))


def test_pixels_written_in_a_process_are_read_in_another_without_travelling() -> None:
    ring, queue = Ring(2, 3, SHAPE), FORK.SimpleQueue()
    process = FORK.Process(target=fill, args=(ring, 1, 3, queue))
    process.start()
    messages = [queue.get() for _ in range(3)]
    process.join()
    assert all(len(message) < 600 for message in messages)
    for value, message in enumerate(messages):
        batch = pickle.loads(message)
        assert batch.work == WorkRange(0, value, value + 2) and batch.seconds == {"read": 1.0} and batch.last
        assert torch.equal(batch.pixels_BCHW, torch.full(SHAPE, value, dtype=torch.uint8))


@pytest.mark.parametrize("encoded", [False, True])
def test_a_worker_that_dies_while_it_sends_leaves_no_half_of_a_batch_in_the_pipe(encoded: bool) -> None:
    ring, rows = Ring(2, 2, SHAPE, room(2)), {}
    for worker, index in ((0, 0), (0, 1), (1, 0), (1, 1)):
        pixels_BCHW, slot = ring.take(worker)
        work = WorkRange(worker, index, index + 2)
        plain = SharedBatch(pixels_BCHW, [], [], work, True, slot=slot)
        batch = empty_batch(pixels_BCHW, work, slot) if encoded else plain
        batch.rows.append(ImageRow("a.jpg", "a", worker, index, 4, 4, None, None, f"{work}" * 100_000))
        message = pickle.dumps(batch)
        assert len(message) < select.PIPE_BUF, "what is longer may be written in parts"
        rows[message] = batch.rows
    assert [pickle.loads(message).rows for message in rows] == [*rows.values()]


def test_a_buffer_is_filled_again_only_after_its_release() -> None:
    ring, queue = Ring(1, 2, SHAPE), FORK.SimpleQueue()
    process = FORK.Process(target=fill, args=(ring, 0, 5, queue))
    process.start()
    for value in range(5):
        batch = pickle.loads(queue.get())
        process.join(0.05)
        assert batch.pixels_BCHW.unique().tolist() == [value]
        assert process.is_alive() or value >= 3
        batch.release()
    process.join()


def test_a_batch_moved_to_the_same_device_still_releases() -> None:
    ring = Ring(1, 1, SHAPE)
    for value in range(3):
        batch_of(ring, 0, value).to(torch.device("cpu")).release()


def test_workers_do_not_share_buffers() -> None:
    ring = Ring(2, 1, SHAPE)
    first, second = batch_of(ring, 0, 7), SharedBatch(ring.take(1)[0], [], [], WorkRange(0, 0, 1), True)
    second.pixels_BCHW[:] = 9
    assert first.pixels_BCHW.unique().tolist() == [7]


class Pixels:
    """A tensor that only tells how it was asked to move."""

    def __init__(self) -> None:
        self.moves: list[tuple[str, bool]] = []

    def to(self, device: torch.device, non_blocking: bool) -> Pixels:
        self.moves.append((device.type, non_blocking))
        return self


def test_only_cuda_may_read_the_pixels_later() -> None:
    pixels: Any = Pixels()
    for name in ("cpu", "mps", "cuda"):
        PixelBatch(pixels, [], [], WorkRange(0, 0, 1), True).to(torch.device(name))
    assert pixels.moves == [("cpu", False), ("mps", False), ("cuda", True)]
