"""What a GPU says of itself through NVML; nothing, where there is no GPU or no NVML."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from lora_clip.monitor.progress import UNKNOWN


class Reading(NamedTuple):
    """A moment of a device: use from 0 to 1, memory in bytes (of all its users), power in watts; NaN: not known."""

    use: float = UNKNOWN
    used_bytes: float = UNKNOWN
    total_bytes: float = UNKNOWN
    watts: float = UNKNOWN


class Gauge:
    """Reads one device; `nvml` is the module pynvml (package nvidia-ml-py)."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    def read(self) -> Reading:
        """Its state now; a slice of a GPU, say, knows its memory but not its use."""
        nvml, handle = self._nvml, self._handle
        return Reading(
            self._ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100),
            self._ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used),
            self._ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total),
            self._ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
        )

    def _ask(self, question: Callable[[], Any]) -> float:
        try:
            return float(question())
        except self._nvml.NVMLError:
            return UNKNOWN


def open_gauge(device: torch.device) -> Gauge | None:
    """The gauge of the device that torch means, whatever CUDA_VISIBLE_DEVICES makes of the numbers."""
    if device.type != "cuda":
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        return Gauge(pynvml, _handle(pynvml, str(torch.cuda.get_device_properties(device).uuid)))
    except Exception:  # no package, no driver, no right to ask: figures are a help, never a condition
        return None


def _handle(nvml: Any, uuid: str) -> Any:
    """NVML's handle by the device's UUID, which torch gives without the prefix that tells a GPU from a slice of one."""
    try:
        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except nvml.NVMLError:
        return nvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")
