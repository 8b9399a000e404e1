"""Outputs that an older version of this program wrote are gone on with, verified and searched.

tests/data/format-1 was written by that version on a CPU in float32: `tars` with data.limit=70, so that a shard is half
done; `folder` with data.limit=4; `interrupted` killed with -9 while a shard's second half lay in parts/. The input lay
in /data then; each test says where it lies now, as a user does who moved a collection and edits inputs.jsonl.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from helpers.jobs import PROJECT, check_layout, identities, new_folder, nursery, snapshot
from lora_clip.demo import DEMO
from lora_clip.inspection.recheck import recheck
from lora_clip.output.layout import FORMAT
from lora_clip.output.manifest import read_manifest
from lora_clip.search import open_output

OLD = PROJECT / "tests/data/format-1"


def bring(name: str, folder: Path | None = None) -> Path:
    """A copy of an old output that knows where its input and its model lie now."""
    output = new_folder() / name
    shutil.copytree(OLD / name, output)
    inputs = output / "inputs.jsonl"
    inputs.write_text("".join(json.dumps(moved(json.loads(line), folder)) + "\n" for line in lines_of(inputs)))
    return output


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines()


def moved(record: dict[str, object], folder: Path | None) -> dict[str, object]:
    path = folder if folder is not None else DEMO / "shards" / Path(str(record["path"])).name
    status = path.stat()
    stamp = [0, 0] if folder is not None else [status.st_size, status.st_mtime_ns]
    return {**record, "path": str(path), "stamp": stamp}


def shards_in(count: int) -> str:
    return "data.shards=[" + ",".join(str(DEMO / f"shards/{number:05d}.tar") for number in range(count)) + "]"


def embed(output: Path, *source: str) -> str:
    """Go on with today's code; float32, as machines differ in what `auto` means."""
    outcome = nursery().predict(*source, f"output_dir={output}", "model.dtype=float32", "data.num_workers=1").expect(0)
    return outcome.stdout


def assert_sound(output: Path) -> None:
    verdict, notes = recheck(output)
    assert verdict.problems == [] and notes == []
    manifest = read_manifest(output)
    assert manifest is not None and manifest["format"] == FORMAT


def test_shards_of_which_one_was_half_done() -> None:
    output = bring("tars")
    before = snapshot(output)
    embed(output, "data=shards", shards_in(2))
    assert_sound(output)
    check_layout(output, 100)
    after = snapshot(output)
    assert {name: after[name] for name in before if "000000" in name} == {
        name: found for name, found in before.items() if "000000" in name
    }
    assert metadata(output, 1)[:20] == metadata(OLD / "tars", 1)
    hits = open_output(output).search("an apple", k=3)
    assert len(hits) == 3 and hits[0].image().size[0] > 0


def metadata(output: Path, shard: int) -> list[dict[str, object]]:
    return pq.read_table(output / f"metadata/metadata_{shard:06d}.parquet").to_pylist()


@pytest.mark.parametrize("name", ["tars", "folder"])
def test_an_old_output_with_nothing_missing(name: str) -> None:
    output = bring(name, OLD / "pictures" if name == "folder" else None)
    before = snapshot(output)
    limit, source = (70, ("data=shards", shards_in(2))) if name == "tars" else (4, folder_source())
    assert "nothing is missing" in embed(output, *source, f"data.limit={limit}")
    assert snapshot(output) == before
    assert_sound(output)


def folder_source() -> tuple[str, str]:
    return "data=folder", f"data.folder={OLD / 'pictures'}"


def test_a_folder_of_pictures() -> None:
    output = bring("folder", OLD / "pictures")
    before = metadata(output, 0)
    embed(output, *folder_source(), "max_reject_fraction=1")
    assert_sound(output)
    check_layout(output, 4, rejects=1)
    assert metadata(output, 0) == before
    assert [row["caption"] for row in before] == ["a picture", None, None, None]


def test_one_that_was_killed_while_a_half_shard_lay_in_parts() -> None:
    output = bring("interrupted")
    before = snapshot(output)
    half = (OLD / "interrupted/parts/img_emb_000001_000000025-000000050.npy").read_bytes()
    embed(output, "data=shards", shards_in(3), "data.batch_size=5")
    assert_sound(output)
    assert identities(output) == [(shard, position) for shard in range(3) for position in range(50)]
    after = snapshot(output)
    assert {name: after[name] for name in before} == before
    assembled = (output / "img_emb/img_emb_000001.npy").read_bytes()
    assert assembled.endswith(half[128:]), "what was committed was not embedded again"


def test_the_test_data_is_what_the_old_program_wrote() -> None:
    """Line endings, or a merge, may change files unseen."""
    for name in ("tars", "folder", "interrupted"):
        for line in lines_of(OLD / name / "ranks/rank_00000.jsonl"):
            entry = json.loads(line)
            for kind, checksum in entry["checksums"].items():
                found = [path for path in (OLD / name).rglob("*.*") if hashed(path) == checksum]
                assert len(found) == 1 and found[0].name.startswith(kind)


def hashed(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
