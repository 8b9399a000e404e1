"""int8 and fp8 by torchao: a tower's layers with quantized weights, what enters them quantized token by token."""

from __future__ import annotations

import logging

import torch
from torch import nn

from lora_clip.errors import ModelError


def quantize(tower: nn.Module, dtype: torch.dtype) -> None:
    """Quantize a tower's layers to torch.int8 or torch.float8_e4m3fn, in place. Raises ModelError where torchao cannot.

    A scale for each row of weights, and one for each token, found as it comes.
    """
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it tells of kernels that were built for other machines
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Int8DynamicActivationInt8WeightConfig,
        PerRow,
        quantize_,
    )

    config = (
        Int8DynamicActivationInt8WeightConfig()
        if dtype == torch.int8
        else Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())
    )
    apart: list[nn.Module] = getattr(tower, "not_quantized", list)()
    layers = {id(module) for module in tower.modules() if type(module) is nn.Linear} - {id(module) for module in apart}
    try:
        quantize_(tower, config, filter_fn=lambda module, _: id(module) in layers)
    except Exception as error:
        raise ModelError(f"torchao cannot quantize this model ({type(error).__name__}: {error})") from error
