"""Whole jobs over Parquet files, lists and zips: killed and resumed, cut, verified, their pictures shown."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers import dataset_hub as hub
from helpers.images import jpeg
from helpers.jobs import check_layout, committed, lora_clip, new_folder, nursery, snapshot, wait_for
from lora_clip.inspection.pictures import Pictures

IMAGES = 120
SMALL = ("data.batch_size=4", "data.num_workers=2")


def fill(folder: Path) -> dict[str, str]:
    """The same pictures as Parquet files, as a list and as a zip, one of them missing; what is typed for each."""
    pictures = [jpeg(48, 48, seed=number) for number in range(IMAGES)]
    for shard in range(2):
        rows = range(60 * shard, 60 * shard + 60)
        cells = [None if row == 7 else {"bytes": pictures[row], "path": f"{row}.jpg"} for row in rows]
        table = pa.table({"image": cells, "caption": [f"c{row}" for row in rows]})
        pq.write_table(table, folder / f"{shard}.parquet", row_group_size=25)
    for number, picture in enumerate(pictures):
        if number != 7:
            (folder / f"{number}.jpg").write_bytes(picture)
    with zipfile.ZipFile(folder / "a.zip", "w") as file:
        for number, picture in enumerate(pictures):
            file.writestr(f"{number}.jpg", b"" if number == 7 else picture)
    (folder / "l.csv").write_text("path,caption\n" + "".join(f"{n}.jpg,c{n}\n" for n in range(IMAGES)))
    return {"parquet": f"data.parquet={folder}", "list": f"data.list={folder}/l.csv", "zip": f"data.zip={folder}"}


@pytest.mark.slow
@pytest.mark.parametrize("source", ["parquet", "list", "zip"])
def test_a_job_is_killed_and_resumed_and_its_output_is_the_same(source: str) -> None:
    given = (f"data={source}", fill(new_folder())[source], *SMALL)
    whole, output = new_folder() / "output", new_folder() / "output"
    nursery().predict(f"output_dir={whole}", *given).expect(0)
    check_layout(whole, rows=IMAGES - 1, rejects=1)

    nursery().predict(f"output_dir={output}", *given, "data.limit=32").expect(0)
    ledgers = output / "ranks"
    before = sum(path.read_bytes().count(b"\n") for path in ledgers.glob("*"))
    job = nursery().start(f"output_dir={output}", *given, ranks=2)
    assert wait_for(lambda: sum(path.read_bytes().count(b"\n") for path in ledgers.glob("*")) > before, pause=0.002)
    job.kill()
    nursery().predict(f"output_dir={output}", *given, ranks=2).expect(0)
    check_layout(output, rows=IMAGES - 1, rejects=1)
    assert len(committed(output)) == len(set(committed(output))) == IMAGES
    names = [json.loads(line)["kind"] for line in (output / "inputs.jsonl").read_text().splitlines()]
    assert set(names) == {source}
    assert snapshot(output) == snapshot(whole), "the same bytes"
    verified = lora_clip("verify", output)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    found = Pictures.of(output)
    assert found.image(0, 9, "9").size == (48, 48)


@pytest.mark.slow
def test_a_hugging_face_dataset_by_its_name_is_cut_and_resumed_from_the_cache_alone() -> None:
    folder, root, output = new_folder(), new_folder(), new_folder() / "output"
    fill(folder)
    files = {f"data/train-0000{n}-of-00002.parquet": (folder / f"{n}.parquet").read_bytes() for n in range(2)}
    hub.cache(root, "org/name", files)
    given = ("embed", f"output_dir={output}", "data=hf", "data.hf=org/name:train", *SMALL, "trainer.accelerator=cpu")
    variables = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(root), "HF_TOKEN": "hf_secret"}
    for more in (("data.limit=32",), ()):
        done = lora_clip(
            *given, *more, folder=None, cold=True, **variables
        )  # the hub is asked as its library was imported
        assert done.returncode == 0, done.stdout + done.stderr
        hub.cache(root, "org/name", {"data/train-00000-of-00001.parquet": b"another commit"}, "c" * 40)
    check_layout(output, rows=IMAGES - 1, rejects=1)
    assert len(committed(output)) == len(set(committed(output))) == IMAGES
    inputs = (output / "inputs.jsonl").read_text()
    assert inputs.count(f"hf://datasets/org/name@{hub.COMMIT}/data/") == 2 and "c" * 40 not in inputs
    texts = [path.read_text(errors="replace") for path in output.rglob("*.json*") if path.is_file()]
    assert not any("hf_secret" in text for text in [*texts, done.stdout, done.stderr])
    verified = lora_clip("verify", output, folder=None, cold=True, **variables)
    assert verified.returncode == 0 and "note:" not in verified.stdout, verified.stdout + verified.stderr
