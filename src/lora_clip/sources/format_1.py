"""Shards as outputs of format 1 recorded them: what only tars or folders know stood among what all shards have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def upgraded(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a tar or folder shard in today's form."""
    if record.get("files") is not None:
        return {**record, "kind": "folder", "state": {"files": record["files"]}}
    seek_points = record.get("seek_points", record.get("landmarks", []))
    state = {"stamp": record["stamp"], "seek_points": seek_points, "scattered": record["scattered"]}
    return {**record, "kind": "tar", "state": state}
