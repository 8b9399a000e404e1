"""What turns a model's cosines into logits: the temperature that it was trained with, read from its checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open


@dataclass(frozen=True)
class LogitScale:
    """A logit is `scale` x cosine + `bias`; a model with a bias (SigLIP) was trained with a sigmoid, not a softmax."""

    scale: float
    bias: float | None

    def best_probability(self, cosines_NL: np.ndarray) -> np.ndarray:
        """The probability (N,) of the likeliest of L labels: its share of a softmax, or its own sigmoid."""
        logits_NL = self.scale * cosines_NL
        if self.bias is not None:
            return 1 / (1 + np.exp(-(logits_NL.max(axis=1) + self.bias)))
        return 1 / np.exp(logits_NL - logits_NL.max(axis=1, keepdims=True)).sum(axis=1)


def read_logit_scale(folder: Path) -> LogitScale | None:
    """The scale in a base model's safetensors files; None where there is none, as in a vision tower alone."""
    found: dict[str, float] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            held = {"logit_scale", "logit_bias"} & set(file.keys())
            found |= {name: float(file.get_tensor(name).float()) for name in held}
    return LogitScale(math.exp(found["logit_scale"]), found.get("logit_bias")) if "logit_scale" in found else None
