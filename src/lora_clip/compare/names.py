"""What outputs are called, and which ones a person means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lora_clip.errors import ConfigError


def name_roots(roots: Sequence[Path]) -> list[str]:
    """The folders' names; of folders with one name, as much of the paths as tells them apart."""
    paths = [root.resolve() for root in roots]
    return [_name(path, [other for other in paths if other != path]) for path in paths]


def _name(path: Path, others: Sequence[Path]) -> str:
    for depth in range(1, len(path.parts)):
        name = path.parts[-depth:]
        if all(other.parts[-depth:] != name for other in others):
            return str(Path(*name))
    return str(path)


def find_pair(named: Sequence[Path], names: Sequence[str], roots: Sequence[Path]) -> tuple[int, int]:
    """The places of two outputs among all, by their paths or by what they are called. Raises ConfigError."""
    first, second = (_find(path, names, roots) for path in named)
    if first == second:
        raise ConfigError(f"--pair {named[0]} {named[1]} is one output: name two of {', '.join(names)}")
    return first, second


def _find(named: Path, names: Sequence[str], roots: Sequence[Path]) -> int:
    paths = [root.resolve() for root in roots]
    if str(named) in names:
        return names.index(str(named))
    if named.expanduser().resolve() in paths:
        return paths.index(named.expanduser().resolve())
    raise ConfigError(f"--pair {named}: this is none of the outputs that are compared: {', '.join(names)}")
