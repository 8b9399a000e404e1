"""An output against its input, long after the job: what `lora-clip verify` does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lora_clip.compact import IntMap
from lora_clip.errors import DataError
from lora_clip.output import provenance
from lora_clip.output.manifest import read_manifest
from lora_clip.output.store import Store
from lora_clip.output.verify import Verdict, verify
from lora_clip.sources.base import Shard, parse_image_key, source_of
from lora_clip.types import UNCOUNTED


def recheck(root: Path) -> tuple[Verdict, list[str]]:
    """Verify an output completely, and count its input anew where it can be read; notes say where it could not.

    Raises OutputError where `root` holds no output.
    """
    fingerprint = provenance.require_fingerprint(root)
    store = Store(root)
    wanted = ((line["id"], UNCOUNTED if line["wanted"] is None else line["wanted"]) for line in store.inputs())
    verdict = verify(root, IntMap(wanted), store.snapshot())
    if read_manifest(root) is None:
        verdict.problems.append("there is no manifest.json: no run has come to its end")
    problems, notes = compare_inputs(store.inputs(), fingerprint.get("image_key"))
    verdict.problems += problems
    return verdict, notes


def compare_inputs(records: Iterable[Mapping[str, Any]], image_key: Any) -> tuple[list[str], list[str]]:
    """Problems (an input shard is not what was embedded) and notes (it cannot be read any more)."""
    image_keys = parse_image_key(image_key)
    problems, notes = [], []
    for line in records:
        shard = Shard.from_json(line)
        if shard.images == UNCOUNTED:
            continue
        try:
            if changed := source_of(shard, image_keys).check(shard):
                problems.append(f"shard {shard.id}: {shard.path} {changed}")
        except DataError as error:
            notes.append(f"note: {error}; compared with what was recorded of it")
    return problems, notes
