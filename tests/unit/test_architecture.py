"""The rooms of the house: which may know which."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lora_clip

SOURCE = Path(lora_clip.__file__).parent
FLOORS = (
    {"errors", "demo", "__init__"},
    {"types", "compact", "terminal", "extras"},
    {"io"},
    {"sources", "pixels", "models", "output"},
    {"api", "config", "loading", "pack", "inspection", "export"},
    {"monitor"},
    {"diagnose"},
    {"report"},
    {"search"},
    {"evaluate"},
    {"compare"},
    {"benchmark"},
    {"app"},
    {"__main__"},
)
"""From the ground up; a room knows those below it, and none beside it."""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(SOURCE.rglob("*.py"))


def room_of(parts: tuple[str, ...]) -> str:
    """The folder, or the loose file, that a module lies in."""
    return parts[0].removesuffix(".py") if parts else "__init__"


def imported(path: Path) -> Iterator[str]:
    """The rooms that a file imports, inside its functions too; what only a type checker reads does not count."""
    tree = ast.parse(path.read_text())
    unread = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in unread and node.module:
            if node.module == "lora_clip":
                yield from (alias.name for alias in node.names if alias.name in FLOOR)
            elif node.module.startswith("lora_clip."):
                yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("lora_clip."))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_run_one_way(path: Path) -> None:
    own = room_of(path.relative_to(SOURCE).parts)
    up = {room for room in imported(path) if room != own and FLOOR[room] >= FLOOR[own]}
    assert not up, f"{own} must not know {', '.join(sorted(up))}"


def test_no_room_is_called_utils() -> None:
    assert not [path for path in FILES if "util" in path.stem or "common" in path.stem or "misc" in path.stem]
