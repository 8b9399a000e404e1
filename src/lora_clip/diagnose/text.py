"""Plain text for people: tables, and commands as they type them; imports nothing heavy."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return [line.rstrip() for line in lines]


def python() -> str:
    """How the user calls this Python: the bare name where that is the one on the PATH."""
    if shutil.which("python") == sys.executable:
        return "python"
    here = Path.cwd()
    return str(Path(sys.executable).relative_to(here)) if Path(sys.executable).is_relative_to(here) else sys.executable
