"""The outputs of a job: one in `output_dir` itself, or, of several adapters, one for each below it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import DictConfig

from lora_clip.config import read
from lora_clip.errors import ConfigError, ModelError, OutputError
from lora_clip.models.base import find_family
from lora_clip.models.checkpoint import Checkpoint, find_checkpoint
from lora_clip.output.provenance import read_fingerprint
from lora_clip.types import PreprocessSpec

BASE = "base"
"""The name of the output of the base model alone."""


@dataclass(frozen=True)
class Output:
    """One output: its folder, the model that fills it, and its `name`, empty where it is the only one."""

    name: str
    root: Path
    checkpoint: Checkpoint


def find_outputs(config: DictConfig) -> list[Output]:
    """The outputs that the configuration asks for; nothing is created, no model is loaded.

    Raises ConfigError, ModelError, AdapterError or OutputError.
    """
    root, adapters = Path(config.output_dir).expanduser(), read(config, "model.adapter")
    if not isinstance(adapters, list):
        return [Output("", root, find_checkpoint(config.model.base, adapters))]
    names = names_of(adapters)
    if read_fingerprint(root) is not None:
        raise OutputError(f"{root} is an output itself; those of several adapters go below: give another output_dir")
    checkpoints = find_checkpoints(config.model.base, adapters)
    return [Output(name, root / name, one) for name, one in zip(names, checkpoints, strict=True)]


def require_texts(outputs: Sequence[Output]) -> None:
    """Raises ModelError where a model cannot embed captions: it has no text tower, or no tokenizer."""
    for base, folder in {one.checkpoint.base: one.checkpoint.base_folder for one in outputs}.items():
        family = find_family(folder)
        if not family.has_text(folder):
            raise ModelError(
                f"embed=[image,text]: base {base} has no text tower to embed captions with. "
                "embed=image embeds the images alone"
            )
        family.load_tokenizer(folder)


def names_of(adapters: Sequence[str | None]) -> list[str]:
    """What each output is called: the last part of its adapter's folder or hub name, with more where those are equal.

    Raises ConfigError where one adapter is given twice.
    """
    parts = [(BASE,) if adapter is None else _parts(adapter) for adapter in adapters]
    lengths = [1] * len(parts)
    while True:
        names = ["-".join(own[-length:]) for own, length in zip(parts, lengths, strict=True)]
        times = Counter(names)
        longer = [
            min(length + (times[name] > 1), len(own)) for name, own, length in zip(names, parts, lengths, strict=True)
        ]
        if longer == lengths:
            break
        lengths = longer
    if twice := [str(adapter or "null") for adapter, name in zip(adapters, names, strict=True) if times[name] > 1]:
        raise ConfigError(f"model.adapter: {' and '.join(twice)} are one and the same: give each once")
    return names


def _parts(adapter: str) -> tuple[str, ...]:
    folder = Path(adapter).expanduser()
    if not folder.is_dir():
        return tuple(adapter.strip("/").split("/"))
    return (folder.resolve() if ".." in folder.parts else folder.absolute()).parts[1:]


def find_checkpoints(base: str | None, adapters: Sequence[str | None]) -> list[Checkpoint]:
    """A checkpoint for each adapter; null among them is the base of the others where `base` does not name one."""
    found: dict[str | None, Checkpoint]
    found = {adapter: find_checkpoint(base, adapter) for adapter in adapters if adapter is not None}
    if None in adapters:
        bases = {one.base_folder.resolve(): one.base for one in found.values()}
        if base is None and len(bases) > 1:
            raise ModelError(f"the adapters have several bases ({', '.join(bases.values())}): null needs model.base=…")
        found[None] = find_checkpoint(base or next(iter(bases.values()), None), None)
    return [found[adapter] for adapter in adapters]


def shared_spec(outputs: Sequence[Output], orientation: str) -> PreprocessSpec:
    """How the pixels of all models are made, images turned as `data.orientation` says.

    Raises ModelError where that is not the same for all.
    """
    bases = {one.checkpoint.base_folder: one.checkpoint.base for one in outputs}
    specs = {folder: find_family(folder).load_spec(folder) for folder in bases}
    first, spec = next(iter(specs.items()))
    for folder, other in specs.items():
        if other != spec:
            raise ModelError(
                f"{bases[first]} and {bases[folder]} take their images in different sizes or colours, so they cannot "
                "share one pass: run the job once for each"
            )
    return replace(spec, orientation=orientation)
