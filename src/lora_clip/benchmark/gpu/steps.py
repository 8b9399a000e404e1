"""The steps, in their order: what each answers, the module and function that does, and its part of the time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_clip.errors import ConfigError

PACKAGE = "lora_clip.benchmark.gpu"


@dataclass(frozen=True)
class Step:
    """One step: `function` is `module:name`, called with the Settings and the Findings in a process of its own.

    `share` are seconds of ten minutes; what earlier steps leave of theirs is shared by the later ones. With less than
    `least` seconds left it is not begun.
    """

    name: str
    title: str
    function: str
    share: float
    least: float


def _step(name: str, title: str, function: str, share: float, least: float) -> Step:
    return Step(name, title, f"{PACKAGE}.{function}", share, least)


STEPS = (
    _step(
        "material", "models of random weights, and photographs, made where they are missing", "material:make", 40, 10
    ),
    _step("machine", "versions, clocks, PCIe, cores", "machine:describe", 12, 4),
    _step("products", "the matrix rate, and each product of the towers at its real shape", "products:measure", 35, 8),
    _step("fidelity", "cosine of each dtype to the unmerged float32 network", "fidelity:measure", 45, 12),
    _step("tower", "images/s of the towers alone", "tower:measure", 110, 15),
    _step("copies", "copies between host and device", "copies:measure", 15, 6),
    _step("pixels", "what all cores decode", "pixels:measure", 20, 8),
    _step("gpu-jpeg", "JPEGs decoded by the GPU", "gpu_jpeg:measure", 20, 8),
    _step("job", "a whole job with the small model", "jobs:small_model", 30, 12),
    _step("long-job", "a whole job, four times as long", "jobs:longer", 50, 20),
    _step("large-job", "a whole job with the large model", "jobs:large_model", 45, 15),
    _step("settings", "shorter jobs with other workers, batch sizes, dtypes", "jobs:other_settings", 75, 12),
    _step("same-bytes", "the same bytes over workers, a kill and a resume", "safety:same_bytes", 60, 25),
    _step("memory", "a batch that does not fit is said as such", "safety:out_of_memory", 25, 10),
    _step("sanitizer", "two batches under compute-sanitizer", "safety:sanitizer", 60, 15),
)


def choose(only: str | None, steps: Sequence[Step] = STEPS) -> list[Step]:
    """The steps that are asked for, names with commas between. Raises ConfigError for a name that is none."""
    if only is None:
        return list(steps)
    names = only.split(",")
    if unknown := set(names) - {step.name for step in steps}:
        listed = ", ".join(step.name for step in steps)
        raise ConfigError(f"--only: no such step: {', '.join(sorted(unknown))}; there are {listed}")
    return [step for step in steps if step.name in names]
