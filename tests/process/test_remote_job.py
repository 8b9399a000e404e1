"""Whole jobs over addresses: the same bytes as from local files, whatever the connection and whoever kills the job."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import lora_clip
from helpers.bucket import Bucket, s3_bucket
from helpers.hostile import Request, serving
from helpers.images import write_shards
from helpers.jobs import check_layout, identities, new_folder, nursery, snapshot, wait_for

DEMO = Path(lora_clip.__file__).parent / "demo"
SIZES = [40, 0, 70, 30]
IMAGES = sum(SIZES)
OPTIONS = ("data=shards", "data.batch_size=8", "data.num_workers=2")


@pytest.fixture(scope="module")
def shards() -> Path:
    folder = new_folder()
    write_shards(folder, SIZES)
    return folder


@pytest.fixture(scope="module")
def expected(shards: Path) -> dict[str, str]:
    """The embeddings of the local files."""
    output = new_folder() / "output"
    nursery().predict(*OPTIONS, f"data.shards={shards}", f"output_dir={output}").expect(0)
    return embeddings(output)


@pytest.fixture(scope="module")
def bucket(shards: Path) -> Iterator[Bucket]:
    with s3_bucket() as bucket:
        for shard in sorted(shards.iterdir()):
            bucket.put(f"collection/{shard.name}", shard)
        yield bucket


def embeddings(output: Path) -> dict[str, str]:
    return {name: digest for name, digest in snapshot(output).items() if name.startswith("img_emb")}


def trouble(request: Request) -> str | None:
    """Nearly half of all requests go wrong, in turn in each way, though none four times for one block."""
    which = (request.name, request.start >> 22)
    SEEN[which] += 1
    return random.choice(["drop", "truncate", "503 0", "429 0", *[None] * 5]) if SEEN[which] % 4 else None


SEEN: Counter[tuple[str, int]] = Counter()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_job_over_s3_gives_the_same_bytes(bucket: Bucket, expected: dict[str, str], ranks: int) -> None:
    output = new_folder() / "output"
    where = (*OPTIONS, "data.shards=s3://photos/collection", f"output_dir={output}")
    nursery().predict(*where, ranks=ranks, **bucket.environment).expect(0)
    assert embeddings(output) == expected
    check_layout(output, IMAGES)
    again = nursery().predict(*where, **bucket.environment).expect(0)
    assert "sesame" not in again.stdout + again.stderr + everything_written(output)


def test_a_job_over_a_hostile_server_gives_the_same_bytes(shards: Path, expected: dict[str, str]) -> None:
    output = new_folder() / "output"
    with serving(shards, trouble=trouble, password="me:sesame") as web:
        address = web.url("{00000..00003}.tar?token=tok3n", "me:sesame@")
        done = nursery().predict(*OPTIONS, f'data.shards="{address}"', f"output_dir={output}", ranks=2).expect(0)
    assert embeddings(output) == expected
    check_layout(output, IMAGES)
    written = done.stdout + done.stderr + everything_written(output)
    assert web.url("00002.tar") in written and not any(word in written for word in ("sesame", "tok3n"))


def everything_written(output: Path) -> str:
    return "\n".join(path.read_bytes().decode(errors="replace") for path in output.rglob("*") if path.is_file())


def test_a_killed_job_goes_on_from_where_it_was(shards: Path, expected: dict[str, str]) -> None:
    output = new_folder() / "output"
    with serving(shards, delay=0.05) as web:
        where = (*OPTIONS, f'data.shards="{web.url("{00000..00003}.tar")}"', f"output_dir={output}")
        for commits in (1, 3):
            job = nursery().start(*where)
            wait_for(partial(committed, output, commits))
            job.signal_all(signal.SIGKILL)
            job.wait()
        nursery().predict(*where, ranks=2).expect(0)
    assert embeddings(output) == expected
    positions = [(shard, position) for shard, size in enumerate(SIZES) for position in range(size)]
    assert identities(output) == positions


def committed(output: Path, least: int) -> bool:
    """Whether so many ranges are committed."""
    return sum(path.read_bytes().count(b"\n") for path in (output / "ranks").glob("*.jsonl")) >= least


def test_a_bucket_that_changed_is_refused(bucket: Bucket, shards: Path) -> None:
    output = new_folder() / "output"
    address = bucket.put("changing/0.tar", shards / "00000.tar")
    where = (*OPTIONS, f"data.shards={address}", f"output_dir={output}")
    nursery().predict(*where, **bucket.environment).expect(0)
    data = bytearray((shards / "00000.tar").read_bytes())
    data[700] ^= 1
    bucket.put("changing/0.tar", bytes(data))
    refused = nursery().predict(*where, **bucket.environment).expect(2)
    assert f"{address} is not what it was when it was embedded" in refused.stderr


def test_a_server_that_stays_broken_is_one_message(shards: Path) -> None:
    with serving(shards, trouble=lambda request: "403") as web:
        failed = nursery().predict(*OPTIONS, f"data.shards={web.url('00000.tar', 'me:sesame@')}").expect(2)
    (message,) = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert message.startswith("error: data.shards=http://127.0.0.1") and "HTTP 403" in message
    assert "sesame" not in failed.stderr and "Traceback" not in failed.stderr


def test_a_base_and_an_adapter_come_from_a_bucket_once_for_all_ranks(bucket: Bucket, shards: Path) -> None:
    for part in ("base", "adapter"):
        for file in (DEMO / part).iterdir():
            bucket.put(f"models/{part}/{file.name}", file)
    bucket.put("models/base/pytorch_model.bin", b"a pickle, which is never fetched")
    output, cache, here = new_folder() / "output", new_folder(), new_folder() / "output"
    model = ("model.base=s3://photos/models/base", "model.adapter=s3://photos/models/adapter")
    where = (*OPTIONS, f"data.shards={shards}", "data.limit=20")
    nursery().predict(*where, f"output_dir={here}").expect(0)
    for _ in range(2):
        shutil.rmtree(output, ignore_errors=True)
        options = {"ranks": 2, **bucket.environment, "XDG_CACHE_HOME": str(cache)}
        nursery().predict(*where, *model, f"output_dir={output}", **options).expect(0)
        assert embeddings(output) == embeddings(here)
        copies = [path for path in (cache / "lora_clip").iterdir() if path.is_dir()]
        assert len(copies) == 2 and not list(cache.rglob("*.bin"))
    manifest = json.loads((output / "manifest.json").read_text())
    assert "s3://photos/models/base" in json.dumps(manifest) and str(cache) not in json.dumps(manifest)
