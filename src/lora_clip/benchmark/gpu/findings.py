"""What a step finds: figures in one JSON file, written anew with each: a step that is cut has told the others."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from lora_clip.io.atomic import write_text

RUNNING, DONE, CUT, FAILED, NOT_HERE, NOT_RUN = "running", "done", "cut", "failed", "not here", "not run"
MOST_WORDS = 200


class UnavailableError(Exception):
    """What a step needs is not here: `no CUDA`, `no torchvision`."""


class Figure(NamedTuple):
    """A measured value, its unit, and what else is to be said of it."""

    value: float | str | None
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A figure, and what it is `of`: its value is None where it could not be had, and the note says why."""

    of: Mapping[str, Any]
    value: float | str | None
    unit: str = ""
    note: str = ""

    def is_of(self, wanted: Mapping[str, Any]) -> bool:
        """Whether it is of all that."""
        return all(self.of.get(key) == value for key, value in wanted.items())


@dataclass(frozen=True)
class Result:
    """A step as its file tells it; `why` is a sentence where the status is not `done`, times are in seconds."""

    step: str
    title: str
    status: str
    why: str = ""
    seconds: float = 0.0
    limit: float = 0.0
    rows: tuple[Row, ...] = ()

    def write(self, path: Path) -> None:
        """Replace the file."""
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Result:
        """What a file tells."""
        found = json.loads(path.read_text())
        return cls(**{**found, "rows": tuple(Row(**row) for row in found["rows"])})


class Findings:
    """The file of the step under way, seen from within its process."""

    def __init__(self, path: Path) -> None:
        self._path, self._result = path, Result.read(path)

    def add(self, figure: Figure, **of: Any) -> None:
        """Tell a figure, at once."""
        row = Row(of, *figure)
        self._result = replace(self._result, rows=(*self._result.rows, row))
        self._result.write(self._path)

    def attempt(self, measure: Callable[[], Figure], **of: Any) -> None:
        """Measure and tell a figure; where that fails, tell why, and the next one can be measured."""
        try:
            figure = measure()
        except UnavailableError:
            raise
        except Exception as error:  # whatever it is, it is this figure's
            self.fail(error, **of)
        else:
            self.add(figure, **of)

    def fail(self, error: Exception, **of: Any) -> None:
        """Tell why a figure could not be had."""
        self.add(Figure(None, note=f"failed: {words(error)}"), **of)

    def end(self, status: str, why: str = "") -> None:
        """Tell how the step ended."""
        self._result = replace(self._result, status=status, why=why)
        self._result.write(self._path)


def words(error: BaseException) -> str:
    """An error in a line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:MOST_WORDS]
