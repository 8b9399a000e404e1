"""What every test may count on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

# With tensors this small, threads cost ten times what they give, and FAISS's spin; before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell starts background jobs with SIGINT ignored, and children inherit that: no test could interrupt a job.
signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402

if TYPE_CHECKING:
    from helpers.jobs import Job

GPU = pytest.mark.gpu
NO_GPU = pytest.mark.skip(reason="needs a CUDA device")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all of tests/gpu as `gpu`, and skip what is so marked where there is no such device."""
    for item in items:
        if "gpu" in item.path.parts:
            item.add_marker(GPU)
    wanted = [item for item in items if item.get_closest_marker("gpu")]
    if wanted and not _has_gpu():
        for item in wanted:
            item.add_marker(NO_GPU)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture
def jobs() -> Iterator[list[Job]]:
    """The jobs of a test, none of which outlives it."""
    started: list[Job] = []
    yield started
    for job in started:
        job.signal_all(signal.SIGKILL)
