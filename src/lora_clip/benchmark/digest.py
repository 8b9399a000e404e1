"""Whether two outputs hold the same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

KINDS = ("img_emb", "metadata", "rejects")


def digest(output: Path, kinds: Iterable[str] = KINDS) -> str:
    """The SHA-256 of the names and the bytes of an output's files of some kinds."""
    whole = hashlib.sha256()
    for path in sorted(path for kind in kinds for path in (output / kind).glob("*")):
        whole.update(f"{path.relative_to(output)}\n{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()
