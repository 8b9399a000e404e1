"""runs.jsonl: under which conditions each run embedded what it added.

These do not make another kind of embedding, so they are no part of the fingerprint; they may change a row's last bits.
With them stands how close the run's network came to float32 on some of its images, and pixels decoded on the device to
those that the CPU decodes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lora_clip.io.atomic import append_line, storage_error


@dataclass(frozen=True)
class RunNotes:
    """On what `device` a run computed, whether compiled, with how many `threads` a rank (None: not on a CPU)."""

    device: str
    compile: bool
    threads: int | None
    batch_size: int


def take_notes(device: torch.device, compile_model: bool, batch_size: int) -> RunNotes:
    """The conditions in this process, once everything that sets the number of threads has done so."""
    threads = torch.get_num_threads() if device.type == "cpu" else None
    return RunNotes(describe(device), compile_model, threads, batch_size)


def describe(device: torch.device) -> str:
    """The kind of a device: kernels, and with them the last bits, differ between kinds."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else device.type


def read_notes(root: Path) -> list[RunNotes]:
    """The notes of earlier runs; a line that cannot be read says nothing."""
    return [notes for line in _lines(root) if (notes := _parse(line)) is not None]


def _lines(root: Path) -> list[str]:
    path = root / "runs.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def _parse(line: str) -> RunNotes | None:
    try:
        record = json.loads(line)
        return RunNotes(**{field.name: record[field.name] for field in fields(RunNotes)})
    except (ValueError, KeyError, TypeError):
        return None


def add_notes(
    root: Path, notes: RunNotes, proof: Mapping[str, Any] | None = None, decoding: Mapping[str, Any] | None = None
) -> None:
    """Add a run's line, with how close its network came to float32 and its decoding to `exact`, where that is known."""
    path = root / "runs.jsonl"
    started = datetime.now(UTC).isoformat(timespec="seconds")
    measured = {"proof": proof} | ({} if decoding is None else {"decoding": decoding})
    line = json.dumps({"started": started, **asdict(notes), **measured}).encode()
    try:
        append_line(path, line)  # other jobs may do the same
    except OSError as error:
        raise storage_error(path, error) from error


def lowest_proof(root: Path) -> dict[str, Any] | None:
    """The lowest cosines of all runs, and the most images that one of them compared; None where none is known."""
    if not (proofs := _measured(root, "proof")):
        return None
    return {
        "images": max(proof["images"] for proof in proofs),
        "reference": proofs[-1]["reference"],
        **_lowest(proofs),
    }


def farthest_decoding(root: Path) -> dict[str, Any] | None:
    """The same of what decoding on the device changed; None where the CPU decoded."""
    if not (found := _measured(root, "decoding")):
        return None
    farthest = {name: max(one[name] for one in found) for name in ("images", "mean", "most")}
    return farthest | _lowest(found)


def _lowest(measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    centred = [one["centred"] for one in measured if one["centred"] is not None]
    return {"cosine": min(one["cosine"] for one in measured), "centred": min(centred, default=None)}


def _measured(root: Path, name: str) -> list[dict[str, Any]]:
    """What runs have measured, as far as they have; a line that cannot be read says nothing."""
    return [found for line in _lines(root) if (found := _part(line, name)) is not None]


def _part(line: str, name: str) -> dict[str, Any] | None:
    try:
        return json.loads(line).get(name)
    except (ValueError, AttributeError):
        return None


def differences(earlier: Sequence[RunNotes], now: RunNotes) -> str | None:
    """What differs from earlier runs, in a line for the user, or None."""
    found = []
    for name, value in asdict(now).items():
        others = {str(other) for notes in earlier if (other := getattr(notes, name)) not in (value, None)}
        if others and value is not None:
            found.append(f"{name} {' or '.join(sorted(others))} (now {value})")
    if not found:
        return None
    return f"note: earlier rows were made with {', '.join(found)}: bytes may differ in the last bits; going on"
