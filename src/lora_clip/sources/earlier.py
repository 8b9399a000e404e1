"""Shards as earlier versions recorded them: what is read of them is in today's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_clip.sources.seek_points import text_of


def upgraded(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record of a shard in today's form.

    In format 1 what only tars or folders know stood among what all shards have; the points to start from in a tar were
    a list of pairs at first, which takes 13 KB in memory where a text takes one.
    """
    record = record if "kind" in record else _of_format_1(record)
    state = record.get("state")
    if isinstance(state, Mapping) and isinstance(points := state.get("seek_points"), list):
        return {**record, "state": {**state, "seek_points": text_of(points)}}
    return record


def _of_format_1(record: Mapping[str, Any]) -> dict[str, Any]:
    if record.get("files") is not None:
        return {**record, "kind": "folder", "state": {"files": record["files"]}}
    seek_points = record.get("seek_points", record.get("landmarks", []))
    state = {"stamp": record["stamp"], "seek_points": seek_points, "scattered": record["scattered"]}
    return {**record, "kind": "tar", "state": state}
