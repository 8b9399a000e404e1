"""In what a model computes: dtype, device, batch size, compiled or not."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lora_clip.errors import ConfigError

CPU = torch.device("cpu")
BATCH_SIZES = {"cpu": 64, "cuda": 256}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """How a network is run: the dtype of its products, where, how many images at a time, through torch.compile or not.

    The plain Compute() is what suits single queries: float32 on the CPU.
    """

    dtype: torch.dtype = torch.float32
    device: torch.device = CPU
    batch_size: int = 1
    compile: bool = False


def resolve_dtype(name: str, device_type: str) -> torch.dtype:
    """The dtype that `model.dtype` names; `auto` is bfloat16 on a device that computes in it, else float32.

    Raises ConfigError for another name.
    """
    if name == "auto":
        return torch.bfloat16 if _has_bfloat16(device_type) else torch.float32
    if name not in DTYPES:
        raise ConfigError(f"model.dtype={name}: auto, {', '.join(DTYPES)} are known")
    return DTYPES[name]


def auto_batch_size(device_type: str) -> int:
    """How many images at a time keep a device of this kind busy, whatever the machine."""
    return BATCH_SIZES.get(device_type, BATCH_SIZES["cpu"])


def _has_bfloat16(device_type: str) -> bool:
    """Whether a device has instructions for products in bfloat16; without them it is slower than float32."""
    if device_type == "cuda":
        # GPUs before Ampere (V100, T4) only emulate it, which PyTorch counts as support unless told not to
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device_type == "cpu" and _cpu_has_bfloat16()


def _cpu_has_bfloat16() -> bool:
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name)() for name in names if hasattr(torch.cpu, name))
