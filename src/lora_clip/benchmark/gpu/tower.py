"""Images/s of the towers alone: as they are, and compiled a layer at a time."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch

from lora_clip.benchmark.gpu import material
from lora_clip.benchmark.gpu.findings import Figure, Findings
from lora_clip.benchmark.gpu.products import tower_of
from lora_clip.benchmark.gpu.sizes import Settings
from lora_clip.benchmark.gpu.timing import first_seconds, free, seconds_a_call
from lora_clip.models.checkpoint import find_checkpoint
from lora_clip.models.compute import DTYPES, Compute, dtype_name, resolve_dtype
from lora_clip.models.embedder import MergedEmbedder
from lora_clip.models.encoder import COMPILE, ImageEncoder
from lora_clip.models.proof import lowest_cosine

EAGER, COMPILED = "eager", "compiled by layers"
WAYS = (EAGER, COMPILED)
ALIKE, OTHER = 0.999, "bfloat16"


def measure(settings: Settings, findings: Findings) -> None:
    """Tell the rates of the dtype that `auto` is at all batch sizes, then of bfloat16 at the one that counts most."""
    first, *others = settings.sizes.batches
    auto = dtype_name(resolve_dtype("auto", settings.device.type))
    _measure(settings, findings, auto, WAYS, [first])
    _measure_layers(settings, findings, auto, first)
    if auto != OTHER:
        _measure(settings, findings, OTHER, WAYS, [first])
    _measure(settings, findings, auto, WAYS, others)


def _measure(settings: Settings, findings: Findings, dtype: str, ways: tuple[str, ...], batches: list[int]) -> None:
    for name in (settings.sizes.large, settings.sizes.small):
        plain = _load(settings, name, dtype)
        for batch, way in ((batch, way) for batch in batches for way in ways if _is_worth_it(settings, name, way)):
            free()
            findings.attempt(
                partial(_figure, settings, plain, name, batch, way), model=name, dtype=dtype, batch=batch, way=way
            )


def _measure_layers(settings: Settings, findings: Findings, dtype: str, batch: int) -> None:
    """What one layer takes of the time, and the last one, which computes the class token alone."""
    for name in (settings.sizes.large, settings.sizes.small):
        plain = _load(settings, name, dtype)
        for part, index in (("a layer", 0), ("the last layer", -1)):
            free()
            findings.attempt(
                partial(_layer_figure, settings, plain, batch, index), model=name, dtype=dtype, batch=batch, part=part
            )


@torch.inference_mode()
def _layer_figure(settings: Settings, plain: ImageEncoder, batch: int, index: int) -> Figure:
    tower: Any = plain.tower
    start_TD: torch.Tensor = tower.start_TD
    tokens_BTD = torch.randn((batch, *start_TD.shape), dtype=start_TD.dtype, device=start_TD.device)
    seconds = seconds_a_call(partial(tower.layers[index], tokens_BTD), settings.device, settings.sizes.seconds / 2)
    return Figure(round(1e3 * seconds, 3), "ms")


def _is_worth_it(settings: Settings, name: str, way: str) -> bool:
    """Whether to wait for it: a CPU's compiler takes half a minute a network, however small that is."""
    return settings.device.type == "cuda" or way == EAGER or name == settings.sizes.small


def _load(settings: Settings, name: str, dtype: str) -> ImageEncoder:
    base, adapter = material.model(settings, name)
    compute = Compute(DTYPES[dtype], settings.device, settings.sizes.batches[0])
    return MergedEmbedder(find_checkpoint(str(base), str(adapter)), compute).load().images.encoder


def _figure(settings: Settings, plain: ImageEncoder, name: str, batch: int, way: str) -> Figure:
    """One rate; a variant that gives other embeddings is an error."""
    device, shape = settings.device, (batch, 3, 224, 224)
    # made as a job's batches are, outside inference mode
    pixels_BCHW = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    encoder = variant(plain, way)
    with torch.inference_mode():
        run = partial(encoder, pixels_BCHW)
        started = first_seconds(run, device)
        if not (alike := lowest_cosine(plain(pixels_BCHW), run())) >= ALIKE:  # nor is NaN
            raise AssertionError(f"cosine {alike:.6f} to the eager tower")
        seconds = seconds_a_call(run, device, settings.sizes.seconds)
    return Figure(round(batch / seconds, 1), "images/s", _note(name, batch, seconds, way, started))


def _note(name: str, batch: int, seconds: float, way: str, started: float) -> str:
    tflops = tower_of(name).gflop * batch / seconds / 1e3
    compiling = f", compiled in {started:.0f} s" if way == COMPILED else ""
    return f"{1e3 * seconds:.2f} ms a batch, {tflops:,.1f} TFLOP/s of the whole network's arithmetic{compiling}"


def variant(plain: ImageEncoder, way: str) -> ImageEncoder:
    """The same network computed in another way; the eager one is itself."""
    if way == EAGER:
        return plain
    changed = copy.deepcopy(plain)
    torch.compiler.reset()  # each shape is compiled anew, and after a few of them PyTorch would give up in silence
    for layer in changed.tower.layers:  # type: ignore[union-attr]
        layer.compile(**COMPILE)
    return changed
