"""Jobs over tars that nobody has counted: work begins without a scan, and everything ends as if there had been one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.images import jpeg, write_tar
from helpers.jobs import Gate, Outcome, nursery, snapshot, wait_for
from lora_clip.loading.plan import SMALL
from lora_clip.output import provenance
from lora_clip.output.store import Store

SIZES = [40, 0, 25, 64, 7, 33]
SETTINGS = ("data=shards",)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tars too large, for what else is in them, to be counted before work begins; beside them stands a wrong number."""
    folder = tmp_path_factory.mktemp("uncounted")
    ballast = {"weights.bin": bytes(SMALL // (len(SIZES) - 2))}
    for number, size in enumerate(SIZES):
        images = {f"{i:04d}.jpg": jpeg(40, 30, 100 * number + i) for i in range(size)}
        write_tar(folder / f"{number}.tar", {**images, **ballast})
    said = {f"{number}.tar": size for number, size in enumerate(SIZES)} | {"3.tar": 7}
    (folder / "sizes.json").write_text(json.dumps(said))
    return folder


@pytest.fixture(scope="module")
def expected(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a job writes that has counted everything, as one with a limit does."""
    output = tmp_path_factory.mktemp("expected") / "output"
    embed(shards, output, "data.limit=100000")
    return output


def embed(shards: Path, output: Path, *overrides: str, ranks: int = 1) -> Outcome:
    return nursery().predict(
        *SETTINGS, f"data.shards={shards}", f"output_dir={output}", *overrides, ranks=ranks
    ).expect(0)  # fmt: skip


def counted_lines(output: Path) -> list[int]:
    """The shards of which the ledger says that they had to be counted."""
    store = Store(output)
    store.ledger.ranges()
    return sorted(store.ledger.counted())


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 2), (2, 1)])
def test_the_output_is_that_of_a_job_that_counted_first(
    shards: Path, expected: Path, tmp_path: Path, ranks: int, workers: int
) -> None:
    outcome = embed(shards, tmp_path / "output", f"data.num_workers={workers}", ranks=ranks)
    assert snapshot(tmp_path / "output") == snapshot(expected)
    assert [*provenance.read_inputs(tmp_path / "output")] == [*provenance.read_inputs(expected)]
    assert counted_lines(tmp_path / "output") == [2, 3, 4, 5], "the first was counted in the plan, the second is empty"
    note = f"note: what stands beside shards is not what is in them: {shards}/3.tar holds 64, 7 were announced. "
    assert outcome.stdout.count(note) == 1
    assert "some 113 images" in outcome.stdout and "verified: 169 images in 5 shards" in outcome.stdout


def test_a_killed_job_goes_on_and_counts_nothing_twice(shards: Path, expected: Path, tmp_path: Path) -> None:
    output, gate = tmp_path / "output", Gate(100)
    typed = (*SETTINGS, f"data.shards={shards}", f"output_dir={output}", "data.batch_size=2", Gate.TYPED)
    job = nursery().start(*typed, "data.num_workers=1", **gate.options)
    assert wait_for(lambda: any(b"counted" in p.read_bytes() for p in (output / "ranks").glob("*.jsonl")))
    job.kill()
    before = counted_lines(output)
    lines = [json.loads(line) for line in (output / "inputs.jsonl").read_text().splitlines()]
    assert [line["wanted"] for line in lines][:3] == [40, None, None] and before
    outcome = nursery().predict(*typed, ranks=2, **gate.open().options).expect(0)
    assert "169 images in 5 shards = 169 embeddings" in outcome.stdout
    kinds = {"img_emb", "metadata"}
    assert {name for name in snapshot(output) if name.split("/")[0] in kinds} == {
        name for name in snapshot(expected) if name.split("/")[0] in kinds
    }
    text = "".join(path.read_text() for path in (output / "ranks").glob("*.jsonl"))
    told = {shard: text.count(f'{{"counted": {{"id": {shard},') for shard in range(6)}
    assert all(told[shard] == 1 for shard in before), "what is known is not counted again"
    assert "nothing is missing" in nursery().predict(*typed, **gate.options).expect(0).stdout


def test_a_tar_that_was_counted_and_has_changed_since_is_refused(shards: Path, tmp_path: Path) -> None:
    folder, output = tmp_path / "tars", tmp_path / "output"
    folder.mkdir()
    for path in shards.glob("*.tar"):
        (folder / path.name).symlink_to(path)
    embed(folder, output)
    (folder / "3.tar").unlink()
    write_tar(folder / "3.tar", {"other.jpg": jpeg(20, 20, 7)})
    again = nursery().predict(*SETTINGS, f"data.shards={folder}", f"output_dir={output}")
    assert again.status == 2 and "3.tar is not what it was when it was embedded (64 images then, 1 now)" in again.stderr


def test_too_many_rejects_of_an_input_that_is_not_counted_end_the_run(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tars"
    folder.mkdir()
    (folder / "0.tar").symlink_to(shards / "0.tar")
    write_tar(folder / "1.tar", {f"{i}.jpg": b"no image" for i in range(400)} | {"x.bin": bytes(SMALL)})
    outcome = nursery().predict(*SETTINGS, f"data.shards={folder}", f"output_dir={tmp_path / 'out'}")
    assert outcome.status == 2 and "images rejected, more than max_reject_fraction allows" in outcome.stderr


def test_jobs_that_share_it_count_each_shard_once_and_write_the_same(
    shards: Path, expected: Path, tmp_path: Path
) -> None:
    output, typed = tmp_path / "output", (f"data.shards={shards}", "share=true", "data.num_workers=1")
    jobs = [nursery().start(*SETTINGS, f"output_dir={output}", *typed, ranks=ranks) for ranks in (1, 2)]
    for job in jobs:
        job.wait().expect(0)
    assert snapshot(output) == snapshot(expected)
    assert [*provenance.read_inputs(output)] == [*provenance.read_inputs(expected)]
    assert set(counted_lines(output)) == {2, 3, 4, 5}
