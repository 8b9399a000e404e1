"""In what a model computes: dtype, device, batch size, compiled or not."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lora_clip.errors import ConfigError
from lora_clip.extras import QUANTIZATION, require

CPU = torch.device("cpu")
BATCH_SIZES = {"cpu": 64, "cuda": 256}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUANTIZED = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
"""Of the layers' weights and, image by image, of what they take; by torchao."""
COMPUTE_DTYPES = DTYPES | QUANTIZED
FP8_CAPABILITY = (8, 9)
FLOAT16_CAPABILITY = (7, 0)
"""From which compute capability on a GPU has products in these dtypes."""


@dataclass(frozen=True)
class Compute:
    """How a network is run: the dtype of its products, where, how many images at a time, through torch.compile or not.

    `compile` None is what a job's plan says of it, once that is there.
    The plain Compute() is what suits single queries: float32 on the CPU.
    """

    dtype: torch.dtype = torch.float32
    device: torch.device = CPU
    batch_size: int = 1
    compile: bool | None = False

    @property
    def quantized(self) -> bool:
        """Whether the layers' weights are quantized."""
        return self.dtype in QUANTIZED.values()

    @property
    def product_dtype(self) -> torch.dtype:
        """The dtype of the products that are not quantized."""
        if not self.quantized:
            return self.dtype
        return torch.float32 if self.device.type == "cpu" else torch.bfloat16


def resolve_dtype(name: str, device_type: str) -> torch.dtype:
    """The dtype that `model.dtype` names; `auto` is float16 on a GPU, bfloat16 on a CPU that has it, else float32.

    Raises ConfigError for another name, and for a dtype that cannot be had here.
    """
    if name == "auto":
        return _auto_dtype(device_type)
    if name not in COMPUTE_DTYPES:
        raise ConfigError(f"model.dtype={name}: auto, {', '.join(COMPUTE_DTYPES)} are known")
    if name in QUANTIZED:
        _require_quantized(name, device_type)
    return COMPUTE_DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """What `model.dtype` calls a dtype."""
    return next(name for name, known in COMPUTE_DTYPES.items() if known == dtype)


def auto_batch_size(device_type: str) -> int:
    """How many images at a time keep a device of this kind busy, whatever the machine."""
    return BATCH_SIZES.get(device_type, BATCH_SIZES["cpu"])


def _auto_dtype(device_type: str) -> torch.dtype:
    """The fastest dtype that keeps the cosines to float32 at 0.999 and more.

    On a GPU float16 is as fast as bfloat16 and has three bits more, so its tokens need no float32.
    """
    if device_type == "cuda":
        return torch.float16 if torch.cuda.get_device_capability() >= FLOAT16_CAPABILITY else torch.float32
    return torch.bfloat16 if device_type == "cpu" and _cpu_has_bfloat16() else torch.float32


def _require_quantized(name: str, device_type: str) -> None:
    """Raises ConfigError where a device has no such products, or torchao is not there."""
    if device_type not in (("cuda",) if name == "fp8" else ("cpu", "cuda")):
        raise ConfigError(f"model.dtype={name} is not for the device {device_type}: model.dtype=auto takes what it has")
    if name == "fp8" and (found := torch.cuda.get_device_capability()) < FP8_CAPABILITY:
        needed, here = (".".join(map(str, version)) for version in (FP8_CAPABILITY, found))
        raise ConfigError(
            f"model.dtype=fp8 needs a GPU of compute capability {needed} or more (Ada, Hopper), and this one has "
            f"{here}: model.dtype=auto takes what it has"
        )
    require(QUANTIZATION, "torchao")


def _cpu_has_bfloat16() -> bool:
    """Whether a CPU has instructions for products in bfloat16; without them it is slower than float32."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name)() for name in names if hasattr(torch.cpu, name))
