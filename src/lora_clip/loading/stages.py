"""A user's own stages between reading and decoding, named in `data.stages`.

A stage takes an iterator of RawSample and yields them again, changed or marked, as WebDataset's stages do. But it
yields every sample that it took, once and in order: an image that it leaves out becomes a reject with a reason, so
that each image of the input is still accounted for.
"""

from __future__ import annotations

import importlib
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_clip.errors import ConfigError
from lora_clip.types import RawSample

Stage = Callable[[Iterator[RawSample]], Iterable[RawSample]]


class CheckedStage:
    """A user's stage, held to yielding the samples that it takes."""

    def __init__(self, name: str, stage: Stage) -> None:
        self.name, self.stage = name, stage

    def __call__(self, samples: Iterator[RawSample]) -> Iterator[RawSample]:
        """The samples as the stage leaves them. Raises ConfigError where it drops, adds or reorders one."""
        taken: deque[RawSample] = deque()
        source = _noting(samples, taken)
        for sample in self.stage(source):
            if not taken or _identity(taken[0]) != _identity(sample):
                raise self._broken(taken[0] if taken else None, sample)
            yield replace(sample, work=taken.popleft().work)
        if left := (taken.popleft() if taken else next(source, None)):
            raise self._broken(left, None)

    def _broken(self, expected: RawSample | None, found: RawSample | None) -> ConfigError:
        wanted, came = (sample.path if sample else "nothing" for sample in (expected, found))
        return ConfigError(
            f"data.stages: {self.name} has to yield every sample that it takes, once and in order; where {wanted} was "
            f"due, {came} came. To leave an image out, yield sample.leave_out('why')"
        )


def _noting(samples: Iterator[RawSample], taken: deque[RawSample]) -> Iterator[RawSample]:
    for sample in samples:
        taken.append(replace(sample, image=b"", extras={}))  # no bytes are held for stages that read far ahead
        yield sample


def _identity(sample: RawSample) -> tuple[int, int]:
    return sample.shard, sample.position


def load_stages(names: Any) -> list[CheckedStage]:
    """The stages that `data.stages` names as `module:function`; modules beside the user are found too.

    Raises ConfigError where one cannot be found.
    """
    if isinstance(names, str) or not isinstance(names or [], Sequence):
        raise ConfigError(f"data.stages={names}: give a list of module:function, as in 'data.stages=[mine:only_wide]'")
    return [CheckedStage(str(name), _load(str(name))) for name in names or []]


def _load(name: str) -> Stage:
    module, _, function = name.partition(":")
    if not module or not function:
        raise ConfigError(f"data.stages: {name!r} is not of the form module:function")
    try:
        found = getattr(_import(module), function, None)
    except ImportError as error:
        raise ConfigError(f"data.stages: {name} cannot be imported: {error}") from error
    if not callable(found):
        raise ConfigError(f"data.stages: the module {module} has no function {function}")
    return found


def _import(module: str) -> Any:
    """The module; one in the current folder too, which a console script does not look into by itself."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    return importlib.import_module(module)
