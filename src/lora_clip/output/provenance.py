"""What an output directory says of itself: which model and preprocessing it holds, and which input it is of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lora_clip.errors import OutputError
from lora_clip.io.atomic import replaced, write_text
from lora_clip.output.layout import FORMAT, UNNAMED_FORMAT, check_format
from lora_clip.terminal import count_of

Fingerprint = Mapping[str, Any]
INPUTS = "inputs.jsonl"
DEFAULTS = {"embed": ["image"]}
"""What a fingerprint leaves out where it is so, that it tells of all the same where that differs."""


def read_fingerprint(root: Path) -> dict[str, Any] | None:
    """The fingerprint that the directory was begun with, or None for a directory that holds no output.

    Raises OutputError where it is damaged or of a newer format.
    """
    path = root / "fingerprint.json"
    try:
        found = json.loads(path.read_text()) if path.exists() else None
    except ValueError as error:
        raise OutputError(
            f"{path} is not JSON ({error}): this is not a sound output; use another output_dir"
        ) from error
    if found is not None:
        check_format(path, found.pop("format", UNNAMED_FORMAT))
    return found


def require_fingerprint(root: Path) -> dict[str, Any]:
    """The fingerprint of an output. Raises OutputError where `root` holds none, naming those that lie below it."""
    if re.match(r"[a-z0-9]{2,}:/", str(root)):
        raise OutputError(
            f"{str(root).replace(':/', '://')}: an output is read from a folder: copy it first, as in "
            "aws s3 sync s3://BUCKET/EMB EMB, and give that one"
        )
    found = read_fingerprint(root)
    if found is None and (below := sorted(path.parent.name for path in root.glob("*/fingerprint.json"))):
        raise OutputError(
            f"{root} is no output itself: below it: {count_of(len(below), 'output')} ({', '.join(below)}), as a sweep "
            f"or several adapters leave them. Give one of them, as in {root / below[0]}"
        )
    if found is None:
        raise OutputError(f"{root} holds no output of this program (no fingerprint.json): give the output_dir of a job")
    return found


def write_fingerprint(root: Path, fingerprint: Fingerprint) -> None:
    """Record, before the first embedding is written, what the directory will hold and in which format."""
    write_text(root / "fingerprint.json", json.dumps({"format": FORMAT, **fingerprint}, indent=2) + "\n")


def check_fingerprint(root: Path, wanted: Fingerprint, made_by: Mapping[str, Any] | None = None) -> None:
    """Raises OutputError, naming the differences, where the directory holds embeddings of another kind.

    `made_by` has the names of the model that made what is there, where they are known: digests name nothing to people.
    """
    found = read_fingerprint(root)
    if found is None or found == wanted:
        return
    before, now = ({**DEFAULTS, **dict(flatten(one))} for one in (found, wanted))
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    lines = [f"  {key}: {before.get(key)} there, {now.get(key)} wanted" for key in changed]
    raise OutputError(
        f"{root} holds embeddings of another kind, and one directory holds one kind:\n"
        + "\n".join([*lines, *_named(made_by)])
        + "\nGive another output_dir, or resume=false to discard what is there"
    )


def _named(made_by: Mapping[str, Any] | None) -> list[str]:
    return [f"  there: model.base={made_by['base']} model.adapter={made_by['adapter']}"] if made_by else []


def flatten(value: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """The values of nested mappings, each with its dotted path."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from flatten(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def write_inputs(root: Path, shards: Iterable[Mapping[str, Any]]) -> None:
    """Record the shards' ids, names and shapes: ids stay with their shards in later runs, and verify counts by them."""
    with replaced(root / INPUTS) as file:
        for shard in shards:
            file.write(json.dumps(shard).encode() + b"\n")


def read_inputs(root: Path) -> Iterator[dict[str, Any]]:
    """The shards of earlier runs, as `write_inputs` recorded them; none for a fresh directory.

    One after the other: those of a folder of millions of files hold all their names.
    """
    path = root / INPUTS
    try:
        with path.open("rb") as lines:
            yield from map(json.loads, lines)
    except FileNotFoundError:
        return
    except ValueError as error:
        raise OutputError(f"{path} is damaged ({error}): use another output_dir, or resume=false") from error
