"""Rank 0's plan, dealt out: each rank receives its own share and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist

from lora_clip.loading.plan import RankPlan


def deal(plans: Sequence[RankPlan] | None) -> RankPlan:
    """Receive a rank's plan; rank 0 brings the list of all, the others None. A collective where ranks are several."""
    if not dist.is_available() or not dist.is_initialized():
        assert plans is not None and len(plans) == 1
        return plans[0]
    group = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")  # NCCL would go by way of the GPU
    received: list[RankPlan | None] = [None]
    dist.scatter_object_list(received, None if plans is None else [*plans], src=0, group=group)
    (plan,) = received
    assert plan is not None
    return plan
