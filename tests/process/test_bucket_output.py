"""Whole jobs that write to a bucket: the bytes of a local job, whoever is killed, frozen or refused among them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from helpers.bucket import NAME, Bucket, s3_bucket
from helpers.images import jpeg, write_tar
from helpers.jobs import Gate, Job, check_layout, new_folder, nursery, snapshot, uninterrupted, wait_for
from lora_clip.loading.plan import SMALL

SLOW = ("data.batch_size=4", "data.num_workers=1")
SHARE = ("share_seconds=3", *SLOW)


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with s3_bucket() as bucket:
        yield bucket


def start(bucket: Bucket, name: str, *typed: object, ranks: int = 1, gate: Gate | None = None) -> Job:
    options: dict[str, Any] = {**bucket.environment, **(gate.options if gate else {})}
    stages = [Gate.TYPED] if gate else []
    return nursery().start(f"output_dir=s3://{NAME}/{name}", *SHARE, *typed, *stages, ranks=ranks, **options)


def keys(bucket: Bucket, name: str) -> list[str]:
    pages = bucket.client.get_paginator("list_objects_v2").paginate(Bucket=NAME, Prefix=f"{name}/")
    return [one["Key"].removeprefix(f"{name}/") for page in pages for one in page.get("Contents", [])]


def outside(bucket: Bucket, name: str) -> list[str]:
    return [key for key in keys(bucket, name) if not key.startswith("shared/")]


def committed(bucket: Bucket, name: str, least: int) -> bool:
    return sum(key.endswith((".done", ".finished")) for key in keys(bucket, name)) >= least


def download(bucket: Bucket, name: str) -> Path:
    folder = new_folder() / "copy"
    for key in keys(bucket, name):
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        bucket.client.download_file(NAME, f"{name}/{key}", str(folder / key))
    return folder


def check(bucket: Bucket, name: str) -> Path:
    """Assert that the output is that of a local job, and that nothing else is left but the number of the last era."""
    copy = download(bucket, name)
    assert snapshot(copy) == snapshot(uninterrupted(*SLOW))
    check_layout(copy, rows=400)
    (left,) = (copy / "shared").iterdir()
    assert left.read_bytes() == b""
    return copy


def test_a_job_of_two_ranks_writes_what_a_local_one_writes(bucket: Bucket, jobs: list[Job]) -> None:
    jobs.append(start(bucket, "alone", ranks=2))
    done = jobs[0].wait().expect(0)
    copy = check(bucket, "alone")
    assert f"output:   s3://{NAME}/alone" in done.stdout and "400 embeddings" in done.stdout
    written = (
        done.stdout
        + done.stderr
        + "".join(path.read_bytes().decode(errors="replace") for path in copy.rglob("*") if path.is_file())
    )
    assert "sesame" not in written
    assert {"manifest.json", "report.html", "runs.jsonl", "inputs.jsonl"} <= {path.name for path in copy.iterdir()}
    again = start(bucket, "alone")
    assert "nothing is missing" in again.wait().expect(0).stdout
    check(bucket, "alone")


def test_a_killed_job_is_gone_on_with(bucket: Bucket, jobs: list[Job]) -> None:
    gate = Gate(160)
    jobs.append(start(bucket, "killed", gate=gate))
    assert wait_for(partial(committed, bucket, "killed", 3))
    jobs[0].kill()
    start(bucket, "killed", gate=gate.open()).wait().expect(0)
    check(bucket, "killed")


@pytest.fixture(scope="module")
def shards() -> Path:
    """Tars too large to be counted before work begins; one is more than a cell, one is empty."""
    folder, ballast = new_folder(), bytes(SMALL // 2)
    for number, size in enumerate((560, 0, 20)):
        images = {f"{i:04d}.jpg": jpeg(40, 30, 1000 * number + i % 20) for i in range(size)}
        write_tar(folder / f"{number}.tar", {**images, "weights.bin": ballast})
    return folder


def test_of_two_jobs_over_uncounted_shards_one_is_killed(bucket: Bucket, jobs: list[Job], shards: Path) -> None:
    options, gates = ("data=shards", f"data.shards={shards}"), (Gate(530), Gate(530))
    jobs += [start(bucket, "two", *options, gate=gate) for gate in gates]
    assert wait_for(partial(committed, bucket, "two", 1))
    jobs[0].kill()
    gates[1].open()
    jobs[1].wait().expect(0)
    copy = download(bucket, "two")
    assert snapshot(copy) == snapshot(uninterrupted(*SLOW, *options))
    check_layout(copy, rows=580)
    assert [json.loads(line)["images"] for line in (copy / "inputs.jsonl").read_text().splitlines()] == [560, 0, 20]


def test_a_frozen_job_wakes_up_when_others_have_done_its_work(bucket: Bucket, jobs: list[Job]) -> None:
    gate = Gate(160)
    jobs.append(start(bucket, "frozen", gate=gate))
    assert wait_for(partial(committed, bucket, "frozen", 2))
    jobs[0].freeze()
    jobs.append(start(bucket, "frozen", gate=gate.open()))
    jobs[1].wait().expect(0)
    check(bucket, "frozen")
    jobs[0].thaw()
    jobs[0].wait().expect(0)
    assert snapshot(download(bucket, "frozen")) == snapshot(uninterrupted(*SLOW))


def test_what_does_not_fit_is_refused(bucket: Bucket) -> None:
    start(bucket, "kind", "data.limit=20").wait().expect(0)
    before = outside(bucket, "kind")
    refused = start(bucket, "kind", "output.dtype=float32").wait().expect(2)
    assert f"s3://{NAME}/kind holds embeddings of another kind" in refused.stderr
    assert outside(bucket, "kind") == before
    start(bucket, "kind", "output.dtype=float32", "resume=false").wait().expect(0)
    start(bucket, "kind", "output.dtype=float32").wait().expect(0)  # more of the shards that are finished
    check_layout(download(bucket, "kind"), rows=400)
