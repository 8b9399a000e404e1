"""Rank 0's plan, sent to all: one truth, read once from the file system."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from lora_clip.loading.counters import Counters, SharedMemory, serve_counters
from lora_clip.loading.plan import Plan
from lora_clip.loading.queue import Indices


def deal(plan: Plan | None) -> tuple[Plan, Counters, Any]:
    """The plan, its counters, and what keeps those alive; rank 0 brings the plan, the others None.

    A collective where ranks are several.
    """
    if not dist.is_available() or not dist.is_initialized():
        assert plan is not None and len(plan.runs) == 1
        return plan, SharedMemory(len(Indices(plan))), None
    group = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")  # NCCL would go by way of the GPU
    served, store = serve_counters() if plan is not None else (None, None)
    received: list[Any] = [plan, store]
    dist.broadcast_object_list(received, src=0, group=group)
    return (*received, served)
