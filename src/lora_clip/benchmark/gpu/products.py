"""What the device reaches in products: in large ones, and in each of the towers' at its real shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional

from lora_clip.benchmark.gpu.findings import Figure, Findings
from lora_clip.benchmark.gpu.sizes import Settings
from lora_clip.benchmark.gpu.timing import free, seconds_a_call
from lora_clip.benchmark.models import shape_of
from lora_clip.models.clip_tower import ALIGNED
from lora_clip.models.compute import DTYPES

HALVES = ("float16", "bfloat16")
LARGE = "large square"
IMAGE, CHANNELS, MLP = 224, 3, 4


@dataclass(frozen=True)
class Tower:
    """The numbers that a vision tower's products follow from: tokens T, width D, and so on."""

    width: int
    layers: int
    heads: int
    patch: int
    projection: int

    @property
    def tokens(self) -> int:
        """T: of an image, with the class token."""
        return (IMAGE // self.patch) ** 2 + 1

    @property
    def gflop(self) -> float:
        """GFLOP of an image through the whole network, as published figures count: all tokens in all layers."""
        tokens, width = self.tokens, self.width
        layer = 2 * tokens * (4 + 2 * MLP) * width**2 + 4 * tokens**2 * width
        patches = 2 * (tokens - 1) * CHANNELS * self.patch**2 * width
        return (self.layers * layer + patches + 2 * width * self.projection) / 1e9


def tower_of(name: str) -> Tower:
    """The tower of a model of random weights."""
    shape, projection = shape_of(name)
    width, layers, heads = shape["hidden_size"], shape["num_hidden_layers"], shape["num_attention_heads"]
    return Tower(width, layers, heads, shape["patch_size"], projection)


@dataclass(frozen=True)
class Made:
    """How tensors are made."""

    dtype: torch.dtype
    device: torch.device

    def noise(self, *shape: int) -> torch.Tensor:
        """Values as they may come: a product of zeros takes less power, and so runs at higher clocks."""
        return torch.randn(shape, device=self.device, dtype=self.dtype)


@dataclass(frozen=True)
class Work:
    """Something that a layer does: FLOP of it (bytes moved, where it is no product), and how to do it once."""

    name: str
    amount: float
    do: Callable[[], object]
    unit: str = "TFLOP/s"


@torch.inference_mode()
def measure(settings: Settings, findings: Findings) -> None:
    """Tell the matrix rate of each dtype, then the parts of both towers at the batch that counts most."""
    sizes, device = settings.sizes, settings.device
    for dtype in HALVES:
        make = partial(_square, Made(DTYPES[dtype], device), sizes.square)
        findings.attempt(partial(_figure, make, device, sizes.seconds), product=LARGE, dtype=dtype)
    for name in (sizes.large, sizes.small):
        for dtype in HALVES:
            _measure_tower(settings, findings, name, dtype)


def _measure_tower(settings: Settings, findings: Findings, name: str, dtype: str) -> None:
    tower, device, batch = tower_of(name), settings.device, settings.sizes.batches[0]
    for make in _parts(tower, batch, DTYPES[dtype], device):
        findings.attempt(
            partial(_figure, make, device, settings.sizes.seconds / 3),
            model=name, dtype=dtype, batch=batch, product=make.keywords["name"],
        )  # fmt: skip


def _figure(make: Callable[[], Work], device: torch.device, seconds: float) -> Figure:
    free()
    work = make()
    taken = seconds_a_call(work.do, device, seconds)
    scale = 1e12 if work.unit == "TFLOP/s" else 1e9
    return Figure(round(work.amount / taken / scale, 3), work.unit, f"{1e3 * taken:.3f} ms")


def _square(made: Made, size: int) -> Work:
    one, other = (made.noise(size, size) for _ in range(2))
    return Work(LARGE, 2 * size**3, partial(torch.mm, one, other, out=torch.empty_like(one)))


def _parts(tower: Tower, batch: int, dtype: torch.dtype, device: torch.device) -> Iterator[partial[Work]]:
    """All that one layer does with a batch's tokens, and the product of the patches, each to be made when it is due."""
    width, rows, made = tower.width, batch * tower.tokens, Made(dtype, device)
    pixels = CHANNELS * tower.patch**2
    linear = partial(_linear, made)
    patches = partial(linear, rows=batch * (tower.tokens - 1), width=width)
    yield partial(patches, name="patches", depth=pixels)
    if padded := -pixels % ALIGNED:
        yield partial(patches, name=f"patches, padded to {pixels + padded}", depth=pixels + padded)
    yield partial(linear, name="query", rows=rows, depth=width, width=width)
    yield partial(linear, name="key and value", rows=rows, depth=width, width=2 * width)
    yield partial(linear, name="query, key and value", rows=rows, depth=width, width=3 * width)
    yield partial(_attention, made, name="attention", tower=tower, batch=batch)
    yield partial(linear, name="out", rows=rows, depth=width, width=width)
    yield partial(linear, name="fc1", rows=rows, depth=width, width=MLP * width)
    yield partial(linear, name="fc2", rows=rows, depth=MLP * width, width=width)
    # these compute next to nothing: what they cost is bytes
    yield partial(_pass, made, name="layer norm", rows=rows, width=width)
    yield partial(_pass, made, name="SiLU", rows=rows, width=MLP * width)
    yield partial(_pass, made, name="addition", rows=rows, width=width)


def _linear(made: Made, name: str, rows: int, depth: int, width: int) -> Work:
    inputs, weight, bias = made.noise(rows, depth), made.noise(width, depth), made.noise(width)
    return Work(name, 2 * rows * depth * width, partial(functional.linear, inputs, weight, bias))


def _attention(made: Made, name: str, tower: Tower, batch: int) -> Work:
    shape = (batch, tower.tokens, tower.heads, tower.width // tower.heads)
    # as the tower has them: heads are views of rows of tokens
    query, key, value = (made.noise(*shape).transpose(1, 2) for _ in range(3))
    flop = 4 * batch * tower.tokens**2 * tower.width
    return Work(name, flop, partial(functional.scaled_dot_product_attention, query, key, value))


def _pass(made: Made, name: str, rows: int, width: int) -> Work:
    """One reading of tokens, and one writing; an addition reads two."""
    tokens, weight = made.noise(rows, width), made.noise(width)
    do = {
        "layer norm": partial(functional.layer_norm, tokens, (width,), weight, weight),
        "SiLU": partial(functional.silu, tokens, inplace=True),
        "addition": partial(tokens.add_, tokens.clone()),
    }[name]
    return Work(name, (3 if name == "addition" else 2) * tokens.numel() * tokens.element_size(), do, "GB/s")
