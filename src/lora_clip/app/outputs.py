"""The outputs of a job: one in `output_dir` itself, or, of several adapters, one for each below it."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import DictConfig

from lora_clip.config import read
from lora_clip.errors import ConfigError, ModelError, OutputError
from lora_clip.io.addresses import is_remote, redacted, scheme_of
from lora_clip.models.base import find_family
from lora_clip.models.checkpoint import Checkpoint, find_checkpoint
from lora_clip.output.provenance import read_fingerprint
from lora_clip.types import PreprocessSpec

WRITTEN = ("s3", "gs", "memory")
"""Schemes of buckets in which objects can be made once."""
SCRATCH = "LORA_CLIP_SCRATCH"
BASE = "base"
"""The name of the output of the base model alone."""
Adapter = str | Mapping[str, float] | None
"""What `model.adapter` names for an output: an adapter, a weighted sum of some, or none."""
Term = tuple[tuple[str, ...], float | None]
"""One adapter's name in parts, and its weight where it is in a sum."""


@dataclass(frozen=True)
class Output:
    """One output: its folder, the model that fills it, and its `name`, empty where it is the only one."""

    name: str
    root: Path
    checkpoint: Checkpoint
    address: str = ""

    @property
    def place(self) -> str:
        """Where the output is, as a person is told."""
        return redacted(self.address) or str(self.root)


def find_outputs(config: DictConfig) -> list[Output]:
    """The outputs that the configuration asks for; nothing is created, no model is loaded.

    Raises ConfigError, ModelError, AdapterError or OutputError.
    """
    adapters = read(config, "model.adapter")
    if is_remote(config.output_dir):
        return [_in_bucket(config, adapters)]
    root = Path(config.output_dir).expanduser()
    if not isinstance(adapters, list):
        return [Output("", root, find_checkpoint(config.model.base, adapters))]
    names = names_of(adapters)
    if read_fingerprint(root) is not None:
        raise OutputError(f"{root} is an output itself; those of several adapters go below: give another output_dir")
    checkpoints = find_checkpoints(config.model.base, adapters)
    return [Output(name, root / name, one) for name, one in zip(names, checkpoints, strict=True)]


def _in_bucket(config: DictConfig, adapters: Adapter | list[Adapter]) -> Output:
    """The output behind an address, which several jobs may always share. Raises ConfigError for what it cannot have."""
    address = str(config.output_dir)
    if scheme_of(address) not in WRITTEN:
        known = ", ".join(f"{scheme}://" for scheme in WRITTEN)
        raise ConfigError(f"output_dir={redacted(address)}: outputs go to a folder, or to {known}")
    if isinstance(adapters, list):
        raise ConfigError(f"output_dir={redacted(address)} takes one adapter: start a job for each of model.adapter")
    if config.index or config.get("logger") is not None:
        raise ConfigError(
            f"output_dir={redacted(address)} is a bucket: index=false and logger=null there; copy the output to a "
            "folder when it is finished, and type lora-clip index"
        )
    return Output("", scratch_folder(), find_checkpoint(config.model.base, adapters), address)


def scratch_folder() -> Path:
    """The folder in which this job's ranks, on one machine, keep what they are about to put into a bucket."""
    if SCRATCH not in os.environ:
        if "TORCHELASTIC_RUN_ID" in os.environ:  # its ranks are brothers
            name = f"lora-clip-{os.getppid()}-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        else:
            name = f"lora-clip-{os.getpid()}-{os.urandom(4).hex()}"
        os.environ[SCRATCH] = str(Path(tempfile.gettempdir()) / name)
    return Path(os.environ[SCRATCH])


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


def names_of(adapters: Sequence[Adapter]) -> list[str]:
    """What each output is called: the last part of its adapter's folder or hub name, with more where those are equal.

    A sum is called by the names and weights of all in it. Raises ConfigError where one adapter is given twice.
    """
    terms = [_terms(adapter) for adapter in adapters]
    lengths = [_distinct(own) for own in terms]
    while True:
        names = [_name(own, length) for own, length in zip(terms, lengths, strict=True)]
        times = Counter(names)
        longer = [
            min(length + (times[name] > 1), _longest(own))
            for name, own, length in zip(names, terms, lengths, strict=True)
        ]
        if longer == lengths:
            break
        lengths = longer
    if twice := [as_typed(adapter) for adapter, name in zip(adapters, names, strict=True) if times[name] > 1]:
        raise ConfigError(f"model.adapter: {' and '.join(twice)} are one and the same: give each once")
    return names


def as_typed(adapter: Adapter) -> str:
    """An adapter as it is typed in a list: a name, null, or a sum."""
    if adapter is None:
        return "null"
    if isinstance(adapter, str):
        return adapter
    return f"{{{', '.join(f'{name}: {weight:g}' for name, weight in adapter.items())}}}"


def _terms(adapter: Adapter) -> list[Term]:
    """The parts of the names of all in a sum, in the order of these, each with its weight; of a name, that alone."""
    if adapter is None:
        return [((BASE,), None)]
    if isinstance(adapter, str):
        return [(_parts(adapter), None)]
    return sorted((_parts(name), float(weight)) for name, weight in adapter.items())


def _name(terms: Sequence[Term], length: int) -> str:
    named = (("-".join(parts[-length:]), weight) for parts, weight in terms)
    return "+".join(name if weight is None else f"{name}-{weight:g}" for name, weight in named)


def _distinct(terms: Sequence[Term]) -> int:
    """How many parts of each name tell those of a sum apart."""
    lengths = range(1, _longest(terms) + 1)
    return next((one for one in lengths if len({parts[-one:] for parts, _ in terms}) == len(terms)), lengths[-1])


def _longest(terms: Sequence[Term]) -> int:
    return max(len(parts) for parts, _ in terms)


def _parts(adapter: str) -> tuple[str, ...]:
    folder = Path(adapter).expanduser()
    if not folder.exists():
        return tuple(adapter.strip("/").split("/"))
    parts = (folder.resolve() if ".." in folder.parts else folder.absolute()).parts[1:]
    return parts if folder.is_dir() else (*parts[:-1], folder.stem)


def find_checkpoints(base: str | None, adapters: Sequence[Adapter]) -> list[Checkpoint]:
    """A checkpoint for each adapter; null among them is the base of the others where `base` does not name one."""
    found = [None if adapter is None else find_checkpoint(base, adapter) for adapter in adapters]
    if None not in found:
        return [one for one in found if one is not None]
    bases = {one.base_folder.resolve(): one.base for one in found if one is not None}
    if base is None and len(bases) > 1:
        raise ModelError(f"the adapters have several bases ({', '.join(bases.values())}): null needs model.base=…")
    alone = find_checkpoint(base or next(iter(bases.values()), None), None)
    return [one or alone for one in found]


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
