"""docs/extending.md shows code that runs: the source of comics and the stages, from their files in examples/."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.images import jpeg
from helpers.queues import alone
from lora_clip.errors import DataError
from lora_clip.inspection.pictures import Pictures
from lora_clip.inspection.recheck import compare_inputs
from lora_clip.loading.catalog import Catalog
from lora_clip.loading.dataset import PixelDataset
from lora_clip.loading.plan import Inventory, Plan, make_plan, take_inventory
from lora_clip.loading.stages import load_stages
from lora_clip.models.preprocess import parse_spec
from lora_clip.output import provenance
from lora_clip.output.store import Store
from lora_clip.output.verify import verify
from lora_clip.output.writer import RangeCommitter
from lora_clip.sources.base import Shard, Source, open_source
from lora_clip.sources.registry import SOURCES, Registration
from lora_clip.types import EmbeddedBatch, PixelBatch, WorkRange

PROJECT = Path(__file__).parents[2]
SPEC = parse_spec({"size": 16, "crop_size": 16})


@pytest.fixture(autouse=True)
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example's source, as its registry line has it but where the file stands."""
    monkeypatch.syspath_prepend(str(PROJECT / "examples"))
    monkeypatch.setitem(SOURCES, "cbz", Registration("cbz", "/path/to/comics", "cbz_source:CbzSource"))


@pytest.mark.parametrize("name", ["cbz_source.py", "stages.py"])
def test_the_page_shows_the_code_that_is_tested(name: str) -> None:
    page = (PROJECT / "docs/extending.md").read_text()
    assert f"```python\n{(PROJECT / 'examples' / name).read_text()}```" in page, (
        f"docs/extending.md lacks {name} as it is"
    )


def test_the_registry_line_of_the_page_is_this_one() -> None:
    page = (PROJECT / "docs/extending.md").read_text()
    (line,) = [line.strip().rstrip(",") for line in page.splitlines() if line.strip().startswith('"cbz": ')]
    registered = eval(f"{{{line}}}", {"Registration": Registration})
    assert registered["cbz"]._replace(location="") == SOURCES["cbz"]._replace(location="")
    assert registered["cbz"].location.partition(":")[2] == "CbzSource"


def fill(folder: Path) -> Path:
    """Two zips: captions beside images, one image broken in its bytes, one in its packing, a mask, one zip of none."""
    folder.mkdir()
    with zipfile.ZipFile(folder / "a.cbz", "w", zipfile.ZIP_DEFLATED) as file:
        for number in range(5):
            file.writestr(f"d/{number}.jpg", jpeg(seed=number))
            file.writestr(f"d/{number}.txt", f"Picture {number}")
        file.writestr("d/0.seg.png", b"mask")
    with zipfile.ZipFile(folder / "b.cbz", "w", zipfile.ZIP_STORED) as file:
        file.writestr("x.jpg", b"no image")
        file.writestr("y.jpg", b"checked by its CRC")
        file.writestr("z.jpg", jpeg(seed=9))
    data = (folder / "b.cbz").read_bytes()
    (folder / "b.cbz").write_bytes(data.replace(b"checked by its CRC", b"changed by a fault", 1))
    zipfile.ZipFile(folder / "c.cbz", "w").close()
    return folder


def embed(root: Path, source: Source, known: list[Shard], stages: Any = ()) -> tuple[list[Shard], Plan]:
    """A job without a model: plan what is missing, load it, commit an embedding of every row."""
    inventory = take_inventory(source, known)
    wanted = dict(inventory.targets)
    root.mkdir(exist_ok=True)
    provenance.write_fingerprint(root, {"image_key": "jpg"})
    provenance.write_inputs(root, ({**one.to_json(), "wanted": wanted[one.id]} for one in inventory.shards))
    store = Store(root)
    done = {id_: [(one.start, one.stop) for one in found] for id_, found in store.snapshot().committed.items()}
    plan = make_plan(inventory, done, ranks=1, workers=0, batch_size=2)
    committer = RangeCommitter(store, 0, plan.targets, plan.images, 1)
    for batch in PixelDataset(source, SPEC, 2, Catalog(source, plan.shards), [alone(plan)], stages=stages):
        committer.add(embedded(batch))
    return list(inventory.shards), plan


def embedded(batch: PixelBatch) -> EmbeddedBatch:
    values_BD = torch.nn.functional.normalize(batch.pixels_BCHW.flatten(1)[:, :8].float() + 1).half()
    return EmbeddedBatch(values_BD, batch.rows, batch.rejects, batch.work, batch.last, batch.counted)


def test_a_job_over_zips_is_embedded_resumed_verified_and_shown(tmp_path: Path) -> None:
    folder, root = fill(tmp_path / "zips"), tmp_path / "out"
    source = open_source({"cbz": str(folder), "image_key": "jpg"})
    shards, plan = embed(root, source, [])
    assert plan.images == 8
    assert [(one.kind, Path(one.path).name, one.images, dict(one.left_out)) for one in shards] == [
        ("cbz", "a.cbz", 5, {"seg.png": 1}),
        ("cbz", "b.cbz", 3, {}),
        ("cbz", "c.cbz", 0, {}),
    ]
    verdict = verify(root, {one.id: one.images for one in shards})
    assert (verdict.problems, verdict.rows, verdict.rejects) == ([], 6, 2)
    assert compare_inputs(provenance.read_inputs(root), "jpg") == ([], [])
    pictures = Pictures.of(root)
    assert pictures.image(0, 3, "d/3").size == (32, 24)
    assert pictures.sample(0, 3).extras == {"txt": b"Picture 3"}
    assert "unpacked" in str(pictures.sample(1, 1).damage)

    known = [Shard.from_json(line) for line in provenance.read_inputs(root)]
    with zipfile.ZipFile(folder / "0.cbz", "w") as file:
        file.writestr("new.jpg", jpeg(seed=3))
    again, rest = embed(root, source, known)
    assert again[:3] == known and again[3].id == 3, "known shards keep their ids"
    assert (rest.images, set(rest.shards)) == (1, {3}), "only what is missing"
    assert verify(root, {one.id: one.images for one in again}).problems == []


def test_any_range_of_a_zip_is_a_slice_of_the_whole(tmp_path: Path) -> None:
    source = open_source({"cbz": str(fill(tmp_path / "zips") / "a.cbz")})
    (shard,) = source.shards([])
    whole = list(source.read(shard, WorkRange(0, 0, shard.images)))
    assert len(whole) == shard.images == 6
    for start in range(6):
        assert list(source.read(shard, WorkRange(0, start, 5))) == whole[start:5]


def test_verify_notices_a_zip_that_changed_or_is_gone(tmp_path: Path) -> None:
    folder = fill(tmp_path / "zips")
    source = open_source({"cbz": str(folder / "a.cbz")})
    (shard,) = source.shards([])
    with zipfile.ZipFile(folder / "a.cbz", "a") as file:
        file.writestr("more.jpg", b"m")
    assert "has 7 images now" in str(source.check(shard))
    (folder / "a.cbz").unlink()
    with pytest.raises(DataError, match=r"cannot read .*a\.cbz"):
        source.check(shard)


def test_the_stages_of_the_page_filter_and_change(tmp_path: Path) -> None:
    source = open_source({"cbz": str(fill(tmp_path / "zips")), "image_key": "jpg"})
    stages = load_stages(["stages:only_captioned", "stages:lower_case"])
    shards, _ = embed(tmp_path / "out", source, [], stages)
    verdict = verify(tmp_path / "out", {one.id: one.images for one in shards})
    assert (verdict.problems, verdict.rows, verdict.rejects) == ([], 5, 3)
    plan = make_plan(Inventory(shards, {0: 5}), {}, ranks=1, workers=0, batch_size=8)
    captions = PixelDataset(source, SPEC, 8, Catalog(source, plan.shards), [alone(plan)], stages=stages)
    assert [row.caption for batch in captions for row in batch.rows] == [f"picture {i}" for i in range(5)]


COMPOSED = """
import sys
from lora_clip.sources.registry import SOURCES, Registration
SOURCES["cbz"] = Registration("cbz", "/path/to/comics", "cbz_source:CbzSource")
from hydra import compose, initialize_config_dir
from lora_clip import config
config.register()
with initialize_config_dir(sys.argv[1], version_base=None):
    made = compose("predict", sys.argv[2:])
config.check(made)
from lora_clip.sources.base import open_source
print(open_source(made.data))
"""


def test_the_registry_line_is_all_that_the_configuration_needs() -> None:
    command = [sys.executable, "-c", COMPOSED, str(PROJECT / "conf"), "data=cbz", "data.cbz=/z"]
    search = os.pathsep.join([str(PROJECT / "examples"), str(PROJECT / "src")])
    found = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": search})
    assert found.stdout == "CbzSource(location='/z', image_keys=None)\n", found.stderr
