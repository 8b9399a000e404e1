"""What the columns of a table are to us, by their usual names: keys, captions, URLs, and metadata."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

KEY_NAMES = ("key", "__key__", "id", "image_id")
CAPTION_NAMES = ("caption", "text", "txt", "captions", "description")
URL_NAMES = ("url", "image_url")


def find(names: Iterable[str], wanted: Iterable[str]) -> str | None:
    """The column that is called by one of the `wanted` names, the first of them first; capitals do not matter."""
    by_lower: dict[str, str] = {}
    for name in names:
        by_lower.setdefault(name.lower(), name)
    return next((by_lower[name] for name in wanted if name in by_lower), None)


@dataclass(frozen=True)
class Roles:
    """Which columns hold a row's key, caption and URL, where there are such columns."""

    key: str | None
    caption: str | None
    url: str | None

    @classmethod
    def of(cls, names: Iterable[str]) -> Self:
        """The roles among these columns."""
        names = list(names)
        return cls(find(names, KEY_NAMES), find(names, CAPTION_NAMES), find(names, URL_NAMES))

    def key_of(self, record: Mapping[str, Any]) -> str | None:
        """A row's key as text, or None where it has none."""
        value = record.get(self.key) if self.key else None
        return None if value is None or value == "" else str(value)

    def extras(self, record: Mapping[str, Any]) -> dict[str, bytes]:
        """A row as the caption and metadata that a tar holds as `.txt` and `.json`.

        The URL is called `url` there; the fields of a column `json` (a `.json` that somebody made a column of) stand
        beside the others.
        """
        caption = _first_text(record.get(self.caption)) if self.caption else None
        fields = {name: value for name, value in record.items() if name not in (self.key, self.url)}
        if caption is not None and isinstance(record.get(self.caption or ""), str):
            del fields[self.caption or ""]
        if self.url and record.get(self.url) is not None:
            fields["url"] = record[self.url]
        if isinstance(inner := fields.get("json"), dict):
            fields = inner | {name: value for name, value in fields.items() if name != "json"}
        extras = {"json": to_json(fields)} if fields else {}
        return extras if caption is None else {"txt": caption.encode("utf-8", "replace"), **extras}


def _first_text(value: Any) -> str | None:
    """A caption, or the first of several."""
    if isinstance(value, list):
        return next((one for one in value if isinstance(one, str) and one), None)
    return value if isinstance(value, str) else None


def to_json(fields: Mapping[str, Any]) -> bytes:
    """A row as one JSON object: dates and the like as text, numbers that JSON does not know as null."""
    return json.dumps(_plain(fields), ensure_ascii=False).encode("utf-8", "replace")


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value)
