"""A Hugging Face dataset by name: from the hub and from its cache alone, one commit whatever the hub does meanwhile."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers import dataset_hub as hub
from helpers.images import jpeg
from lora_clip.errors import ConfigError, DataError
from lora_clip.inspection.recheck import compare_inputs
from lora_clip.sources.base import Shard
from lora_clip.sources.hf import HfSource
from lora_clip.types import UNCOUNTED, WorkRange

README = b"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: held
    path: [data/test-*]
---
"""


def parquet(start: int, rows: int) -> bytes:
    file = io.BytesIO()
    names = range(start, start + rows)
    table = pa.table({"image": [{"bytes": jpeg(seed=n), "path": f"{n}.jpg"} for n in names]})
    pq.write_table(table, file)
    return file.getvalue()


FILES = {
    "data/train-00000-of-00002.parquet": parquet(0, 3),
    "data/train-00001-of-00002.parquet": parquet(3, 2),
    "data/test-00000-of-00001.parquet": parquet(5, 1),
}


def listed(typed: str, known: list[Shard] | None = None) -> list[Shard]:
    return list(HfSource(typed).shards(known or []))


def names(typed: str) -> list[str]:
    return [shard.path.rpartition("/")[2] for shard in listed(typed)]


def keys(typed: str) -> list[str]:
    source = HfSource(typed)
    shards = [source.count(shard) for shard in source.shards([])]
    return [one.key for shard in shards for one in source.read(shard, WorkRange(shard.id, 0, shard.images))]


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def test_offline_the_cache_is_the_dataset(offline: Path) -> None:
    hub.cache(offline, "org/name", FILES)
    assert [shard.images for shard in listed("org/name:train")] == [UNCOUNTED] * 2
    assert keys("org/name:train") == ["0", "1", "2", "3", "4"]
    assert keys("org/name:test") == keys(f"org/name@{hub.COMMIT}:test") == ["5"]
    assert len(keys("org/name")) == 6


def test_splits_are_those_of_the_readme_or_of_the_conversion(offline: Path) -> None:
    hub.cache(offline, "org/name", {**FILES, "README.md": README})
    assert names("org/name:held") == ["test-00000-of-00001.parquet"]
    hub.cache(offline, "org/csv", {"a.csv": b"x"})
    converted = {"default/train/0000.parquet": parquet(0, 1), "default/test/0000.parquet": parquet(1, 2)}
    hub.cache(offline, "org/csv", converted, hub.CONVERTED, "refs/convert/parquet")
    assert keys("org/csv:test") == ["1", "2"]


def test_an_earlier_run_has_the_commit_and_the_next_one_reads_it(offline: Path) -> None:
    source = HfSource("org/name")
    hub.cache(offline, "org/name", FILES)
    known = [source.count(shard) for shard in source.shards([])]
    known = [Shard.from_json(json.loads(json.dumps(shard.to_json()))) for shard in known]
    hub.cache(offline, "org/name", {"data/train-00000-of-00001.parquet": parquet(9, 1)}, "c" * 40)
    assert listed("org/name", known) == known
    with pytest.raises(DataError, match=f"type data.hf=org/name@{hub.COMMIT}, or use another output_dir"):
        listed(f"org/name@{'c' * 40}", known)
    assert compare_inputs([{**shard.to_json(), "wanted": 1} for shard in known], None) == ([], [])


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("org/none", "HF_HUB_OFFLINE is set: type hf download --repo-type dataset org/none"),
        ("org/name:nope", "no split 'nope': type data.hf=org/name:SPLIT with one of default/test, default/train"),
        ("org/csv", "HF_HUB_OFFLINE is set"),
    ],
)
def test_what_is_not_there_is_said_with_what_to_type(offline: Path, typed: str, message: str) -> None:
    hub.cache(offline, "org/name", FILES)
    hub.cache(offline, "org/csv", {"a.csv": b"x"})
    with pytest.raises(DataError) as raised:
        listed(typed)
    assert message in str(raised.value)


def test_a_name_that_is_none() -> None:
    with pytest.raises(ConfigError, match=r"type data\.hf=org/name"):
        listed("https://hub/org/name")


def online(monkeypatch: pytest.MonkeyPatch, cache: Path, url: str) -> None:
    """An empty cache, and our own hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)


def test_a_file_is_fetched_when_it_is_wanted_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub.serve({"main": (hub.COMMIT, {**FILES, "README.md": README})}) as server:
        online(monkeypatch, tmp_path, server.url)
        source = HfSource("org/name:train")
        first, second = source.shards([])
        assert not any("parquet" in path for path in server.asked) and first.bytes > 0
        counted = source.count(first)
        assert len(list(source.read(counted, WorkRange(0, 0, 3)))) == 3
        assert sum("train-00000" in path for path in server.asked) <= 2 < len(server.asked)
        server.revisions = {"old": server.revisions["main"]}
        server.revisions["main"] = ("c" * 40, {"data/train-00000-of-00001.parquet": parquet(9, 1)})
        assert [shard.path for shard in source.shards([counted, second])] == [first.path, second.path]


def test_what_the_hub_refuses_is_said_with_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN", "hf_secret", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with hub.serve({"main": (hub.COMMIT, {"a.csv": b"x"})}) as server:
        online(monkeypatch, tmp_path, server.url)
        for typed, message in (
            ("org/none", "no such dataset"),
            ("org/name@nope", "no revision 'nope'"),
            ("org/name", "nor has the hub converted it"),
        ):
            with pytest.raises(DataError, match=message) as raised:
                listed(typed)
            assert "hf_secret" not in str(raised.value)
        server.gated = True
        with pytest.raises(DataError, match="gated: ask for access"):
            listed("org/name")
