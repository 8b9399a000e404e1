"""What is recorded of a sample besides its pixels: a row of metadata, or why it was rejected."""

from __future__ import annotations

import json

from lora_clip.types import ImageRow, RawSample, Reject


def reject(sample: RawSample, stage: str, error: str) -> Reject:
    """The record of a sample that could not be embedded."""
    return Reject(sample.shard, sample.position, _printable(sample.key), stage, _printable(error))


def describe(sample: RawSample, width: int, height: int) -> ImageRow:
    """The record of an embedded image; the caption is its `.txt`, else the `caption` of its `.json`."""
    metadata = _text(sample.extras.get("json"))
    fields = _fields(metadata)
    caption = _text(sample.extras.get("txt")) or fields.get("caption")
    return ImageRow(
        _printable(sample.path),
        _printable(sample.key),
        sample.shard,
        sample.position,
        width,
        height,
        caption if isinstance(caption, str) else None,
        url if isinstance(url := fields.get("url"), str) else None,
        metadata,
    )


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.decode("utf-8-sig", "replace").strip()


def _fields(metadata: str | None) -> dict[str, object]:
    try:
        fields = json.loads(metadata) if metadata else {}
    except (ValueError, RecursionError):
        return {}
    return {
        key: _printable(value) if isinstance(value, str) else value
        for key, value in (fields.items() if isinstance(fields, dict) else ())
    }


def _printable(text: str) -> str:
    """The text with what UTF-8 cannot hold (undecodable file names, lone surrogates) replaced by question marks."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
