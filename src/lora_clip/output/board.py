"""The few things that jobs which share an output do with files, in a folder of a file system."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from lora_clip.io.exclusive import create_new

FOLDER = "shared"
GONE = f".{FOLDER}-"


class Board:
    """Where members leave word for one another: the files of `shared/` in a folder. Another kind of place overrides it.

    `make` and `make_room` raise FileNotFoundError once the folder is gone; the others take it for an answer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self) -> None:
        """Make the folder; for a job that is alone."""
        (self.path / "members").mkdir(parents=True)

    @property
    def is_over(self) -> bool:
        """Whether the folder is gone."""
        return not self.path.is_dir()

    def make(self, name: str, data: bytes, durable: bool = True) -> bool:
        """Make a file once; whether this call made it."""
        return create_new(self.path / name, data, durable)

    def make_room(self, name: str) -> None:
        """Make a folder for files."""
        (self.path / name).mkdir(exist_ok=True)

    def read(self, name: str) -> bytes | None:
        """What a file holds; None where there is none."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self.path / name).exists()

    def heard(self, name: str) -> float | None:
        """When a file was written or touched, by the clock of where it lies; None where there is none."""
        try:
            return (self.path / name).stat().st_mtime
        except FileNotFoundError:
            return None

    def names(self, name: str) -> set[str]:
        """The files in a folder."""
        try:
            return {entry.name for entry in os.scandir(self.path / name)}
        except FileNotFoundError:
            return set()

    def touch(self, name: str) -> None:
        """Let a file be heard of now. Raises OSError."""
        (self.path / name).touch()

    def remove(self, name: str) -> None:
        """Remove a file."""
        (self.path / name).unlink(missing_ok=True)

    def clear(self, name: str) -> None:
        """Remove a folder and what is in it."""
        shutil.rmtree(self.path / name, ignore_errors=True)

    def end(self) -> None:
        """Remove all, in one step for those who look, and what an earlier one that was killed here has left."""
        with suppress(FileNotFoundError):
            self.path.rename(self.path.parent / f"{GONE}{os.urandom(4).hex()}")
        for gone in self.path.parent.glob(f"{GONE}*"):
            shutil.rmtree(gone, ignore_errors=True)
