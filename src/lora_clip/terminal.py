"""Plain text for people: tables, numbers of things, and commands as they type them; imports nothing heavy."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

SCRIPT = "lora-clip"
UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return [line.rstrip() for line in lines]


def count_of(number: int, thing: str) -> str:
    """`1 shard`, `1,000 shards`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def size_of(number: float) -> str:
    """`740 B`, `1.2 GB`: bytes in units of a thousand."""
    power = 0
    while number >= 1000 and power < len(UNITS) - 1:
        number, power = number / 1000, power + 1
    return f"{number:.0f} B" if power == 0 else f"{number:.1f} {UNITS[power]}"


def command(*words: str | Path) -> str:
    """A line that runs a sub-command of this very installation, from any folder, in any POSIX shell."""
    return shlex.join([*_program(), *map(str, words)])


def _program() -> list[str]:
    """`lora-clip`: by its name where that is the one on the PATH, by its place, or through Python where it has none."""
    script = Path(sys.executable).with_name(SCRIPT)
    if not script.is_file():
        return [sys.executable, "-m", "lora_clip"]
    return [SCRIPT if shutil.which(SCRIPT) == str(script) else str(script)]
