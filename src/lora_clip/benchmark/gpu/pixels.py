"""What the cores make of photographs by the code that a job decodes with: the ceiling of any job that uses them."""

from __future__ import annotations

from functools import partial

from lora_clip.benchmark.ceilings import decode_rate, on_all_cores, pixel_rate
from lora_clip.benchmark.gpu import material
from lora_clip.benchmark.gpu.findings import Figure, Findings
from lora_clip.benchmark.gpu.sizes import Settings
from lora_clip.io.process import cores
from lora_clip.models.base import find_family

ALL = "all cores"


def measure(settings: Settings, findings: Findings) -> None:
    """Tell images/s of decoding and of pixels, on all cores and on one. It must not have touched CUDA: it forks."""
    # a process holds its pace from second to second, so three times what a figure of the device takes
    seconds = 3 * settings.sizes.seconds
    base, _ = material.model(settings, settings.sizes.small)
    spec, data = find_family(base).load_spec(base), material.photographs(settings, settings.sizes.photographs)
    for what, rate in (("decode and resize", pixel_rate), ("decode", decode_rate)):
        for told, number in ((ALL, cores()), ("one core", 1)):
            findings.attempt(partial(_figure, partial(rate, data, spec, seconds), number), pixels=what, on=told)


def _figure(work: partial[float], number: int) -> Figure:
    found = on_all_cores(work, number)
    return Figure(round(found, 1), "images/s", f"{number} processes, {found / number:,.1f} each" if number > 1 else "")
