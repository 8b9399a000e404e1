"""Folders in buckets as local ones: a copy for each version, complete or not there."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

from lora_clip.errors import ConfigError, ModelError
from lora_clip.io import download, remote
from lora_clip.io.download import local_copy
from lora_clip.models.checkpoint import find_checkpoint

ADDRESS = "memory://models/base"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(remote, "_spools", {})
    return tmp_path / "lora_clip"


@pytest.fixture
def files() -> Iterator[Any]:
    """A folder with three files, one of them in a folder below."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    for name in ("config.json", "model.bin", "deep/config.json"):
        files.pipe_file(f"models/base/{name}", name.encode())
    yield files
    files.store.clear()


def folders(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir()]


def test_only_the_files_that_are_asked_for_are_copied_and_once(files: Any, cache: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        copies = set(pool.map(local_copy, [ADDRESS] * 8, [["*.json"]] * 8))
    assert [*copies] == folders(cache) and len(copies) == 1
    (copy,) = copies
    assert {path.name: path.read_text() for path in copy.iterdir()} == {"config.json": "config.json"}


def test_another_version_is_another_copy(files: Any, cache: Path) -> None:
    first = local_copy(ADDRESS, ["*.json"])
    files.pipe_file("models/base/config.json", b"changed")
    second = local_copy(f"{ADDRESS}/", ["*.json"])
    assert (first / "config.json").read_text() == "config.json" and (second / "config.json").read_text() == "changed"


def test_a_copy_that_breaks_off_leaves_nothing(files: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(download, "_copy_file", broken)
        with pytest.raises(OSError, match="broken"):
            local_copy(ADDRESS, ["*.json"])
    assert not folders(cache)
    assert (local_copy(ADDRESS, ["*.json"]) / "config.json").is_file()


def test_what_is_not_there_or_cannot_be_listed_is_said(files: Any) -> None:
    with pytest.raises(ModelError, match=r"model.base=memory://models/none: no such folder"):
        find_checkpoint("memory://models/none", None)
    with pytest.raises(ModelError, match=r"base memory://models/base has no .safetensors file"):
        find_checkpoint(ADDRESS, None)
    with pytest.raises(ConfigError, match=r"https://host/base: a folder behind https:// cannot be listed"):
        find_checkpoint("https://me:word@host/base", None)
