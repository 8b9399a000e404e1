"""Which sources there are: one line for each. Nothing heavy is imported here, since the configuration reads it too."""

from __future__ import annotations

from typing import NamedTuple


class Registration(NamedTuple):
    """How a source is opened: by which key of the `data` group, with what, and where its class is."""

    key: str
    example: str
    location: str


SOURCES: dict[str, Registration] = {
    "tar": Registration("shards", "/path/to/tars", "lora_clip.sources.tar:TarSource"),
    "folder": Registration("folder", "/path/to/images", "lora_clip.sources.folder:FolderSource"),
    "parquet": Registration("parquet", "/path/to/parquet", "lora_clip.sources.parquet:ParquetSource"),
    "hf": Registration("hf", "org/name", "lora_clip.sources.hf:HfSource"),
    "list": Registration("list", "/path/to/list.csv", "lora_clip.sources.list:ListSource"),
    "zip": Registration("zip", "/path/to/zips", "lora_clip.sources.zip:ZipSource"),
}
"""By kind. A source's module is imported when it is used, so what it needs may be missing where it is not."""
