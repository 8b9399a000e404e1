"""`embed=[image,text]`: captions beside images, as whole jobs write them, lose them, and read them again."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from helpers.families import CASES
from helpers.images import jpeg, write_tar
from helpers.jobs import (
    Meeting,
    Outcome,
    check_layout,
    everything,
    ledger,
    lora_clip,
    malformed,
    new_folder,
    nursery,
    snapshot,
    wait_for,
)
from lora_clip.demo import DEMO
from lora_clip.errors import OutputError
from lora_clip.evaluate.run import evaluate
from lora_clip.evaluate.texts import Wanted
from lora_clip.inspection.recheck import recheck
from lora_clip.models.checkpoint import find_checkpoint
from lora_clip.models.embedder import MergedEmbedder
from lora_clip.search import open_output
from lora_clip.search.index import build_index
from lora_clip.search.server import open_outputs

BOTH = "embed=[image,text]"
BATCHES = ("data.batch_size=4", "model.dtype=float32", "output.dtype=float32")
IMAGES, BAD, LACKING = 60, 6, 15
"""All images that can be read, those that cannot, and of the former those without a caption."""


def member_of(number: int) -> dict[str, bytes]:
    """An image and its caption, or what stands in its place."""
    sound = f"{'a red apple on a table ' * (1 + number % 40)}number {number}"
    caption = {
        0: {"txt": sound.encode()},
        1: {"json": json.dumps({"caption": f" {sound} "}).encode()},
        2: {} if number % 8 == 2 else {"txt": b"  \n"},
        3: {"txt": f"{number} zwei Äpfel".encode()},
    }[number % 4]
    return {f"{number:03d}.jpg": jpeg(seed=number), **{f"{number:03d}.{name}": data for name, data in caption.items()}}


@cache
def shards() -> Path:
    """Two shards of images with captions of every kind, some without, and some that are no images."""
    folder = new_folder()
    for shard in range(2):
        members: dict[str, bytes] = {}
        for number in range(IMAGES // 2):
            members |= member_of(shard * IMAGES // 2 + number)
        bad = malformed() if shard else {}
        write_tar(folder / f"{shard}.tar", members | {f"{name}.jpg": data for name, data in bad.items()})
    return folder


def typed(output: Path, *more: object, adapter: object = DEMO / "adapter", workers: int = 1) -> list[object]:
    """What a user types for the demo's model on these shards."""
    where = [f"data.shards={shards()}", f"output_dir={output}", f"model.base={DEMO / 'base'}"]
    return ["data=shards", *where, f"model.adapter={adapter}", f"data.num_workers={workers}", *BATCHES, *more]


@cache
def embedded(adapter: str = str(DEMO / "adapter"), both: bool = True) -> tuple[Path, Outcome]:
    """The output of one rank that nothing disturbed: to be compared with, not to be changed."""
    output = new_folder() / "output"
    return output, nursery().predict(*typed(output, *[BOTH] * both, adapter=adapter)).expect(0)


def rows(output: Path, kind: str) -> np.ndarray:
    return np.concatenate([np.load(path) for path in sorted((output / kind).glob("*.npy"))])


def captions(output: Path) -> list[str]:
    return [(one or "").strip() for one in pq.read_table(output / "metadata")["caption"].to_pylist()]


def test_each_caption_is_embedded_as_embed_text_does() -> None:
    output, outcome = embedded()
    check_layout(output, rows=IMAGES, rejects=BAD)
    texts = captions(output)
    found_ND = rows(output, "text_emb")
    wanted = MergedEmbedder(find_checkpoint(str(DEMO / "base"), str(DEMO / "adapter"))).embed_texts(texts)
    assert wanted is not None and np.einsum("nd,nd->n", found_ND, wanted.numpy()).min() >= 0.9999
    lacking_ND = found_ND[[not one for one in texts]]
    assert len(lacking_ND) == LACKING and (lacking_ND == lacking_ND[0]).all()
    assert "tokenizers" not in outcome.stderr, "forked workers do not complain of threads"
    assert "embedding 66 images and their captions in 2 shards" in outcome.stdout
    assert f"; {IMAGES - LACKING} captions embedded, {LACKING} images have none" in outcome.stdout
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["captions"] == IMAGES - LACKING and manifest["fingerprint"]["embed"] == ["image", "text"]
    assert f"captions embedded; {LACKING} images have none" in (output / "report.html").read_text()


def test_images_are_those_of_a_run_without_captions() -> None:
    both, alone = snapshot(embedded()[0]), snapshot(embedded(both=False)[0])
    assert {name: one for name, one in both.items() if "text" not in name} == alone
    manifest = json.loads((embedded(both=False)[0] / "manifest.json").read_text())
    assert not {"embed", "tokenizer"} & set(manifest["fingerprint"]) and "captions" not in manifest


@pytest.mark.parametrize(("ranks", "workers"), [(2, 1), (1, 0), (1, 2)])
def test_the_same_bytes_however_work_is_shared(ranks: int, workers: int) -> None:
    output = new_folder() / "output"
    line = typed(output, BOTH, Meeting.TYPED, workers=workers)
    nursery().predict(*line, ranks=ranks, **Meeting(ranks).options).expect(0)
    assert snapshot(output) == snapshot(embedded()[0])
    assert len(ledger(output)) == ranks


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_kill_in_the_middle_is_harmless(ranks: int) -> None:
    output = new_folder() / "output"
    nursery().predict(*typed(output, BOTH, "data.limit=10")).expect(0)
    before = sum(map(len, ledger(output).values()))
    job = nursery().start(*typed(output, BOTH), ranks=ranks)
    assert wait_for(lambda: sum(map(len, ledger(output).values())) > before, pause=0.001), job.stderr
    job.kill()
    images, texts = ({path.name[-10:] for path in output.glob(f"{kind}/*")} for kind in ("img_emb", "text_emb"))
    assert images <= texts, "who sees images sees their texts"
    outcome = nursery().predict(*typed(output, BOTH)).expect(0)
    check_layout(output, rows=IMAGES, rejects=BAD)
    assert snapshot(output) == snapshot(embedded()[0])
    assert f"{IMAGES - LACKING} captions embedded, {LACKING} images have none" in outcome.stdout
    again = nursery().predict(*typed(output, BOTH)).expect(0)
    assert "nothing is missing" in again.stdout and f"{IMAGES - LACKING} captions embedded" in again.stdout


def test_what_is_lost_or_damaged_is_found_and_made_anew() -> None:
    output = new_folder() / "output"
    shutil.copytree(embedded()[0], output)
    path = output / "text_emb/text_emb_000001.npy"
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    found = lora_clip("verify", output)
    assert found.returncode == 1 and "shard 1: text_emb changed since it was written" in found.stdout
    path.unlink()
    assert "text_emb/text_emb_000001.npy is gone" in recheck(output)[0].problems[0]
    nursery().predict(*typed(output, BOTH)).expect(0)
    assert snapshot(output) == snapshot(embedded()[0])
    assert recheck(output)[0].problems == []
    build_index(output)
    assert len(open_output(output).search_text("a red apple", 3)) == 3 and recheck(output)[0].problems == []


@pytest.mark.parametrize("both", [False, True])
def test_images_alone_and_images_with_captions_are_two_kinds_of_output(both: bool) -> None:
    output = new_folder() / "output"
    shutil.copytree(embedded(both=both)[0], output)
    before = snapshot(output)
    outcome = nursery().predict(*typed(output, *[BOTH] * (not both))).expect(2)
    there, wanted = ("['image', 'text']", "['image']")[:: 1 if both else -1]
    assert f"  embed: {there} there, {wanted} wanted\n" in outcome.stderr
    assert snapshot(output) == before


def test_a_model_without_text_tower_is_refused_before_any_work() -> None:
    output, base = new_folder() / "output", CASES["dinov2"].save(new_folder() / "base")
    line = [
        "data=shards",
        f"data.shards={shards()}",
        f"output_dir={output}",
        f"model.base={base}",
        "model.adapter=null",
    ]
    outcome = nursery().predict(*line, BOTH).expect(2)
    assert f"base {base} has no text tower to embed captions with. embed=image embeds the images" in outcome.stderr
    assert not output.exists() and outcome.stdout == ""


def test_each_of_several_adapters_has_texts_of_its_own() -> None:
    output = new_folder() / "output"
    nursery().predict(*typed(output, BOTH, adapter=f"[{DEMO / 'adapter'},null]"), ranks=2).expect(0)
    for name, adapter in (("adapter", str(DEMO / "adapter")), ("base", "null")):
        check_layout(output / name, rows=IMAGES, rejects=BAD)
        assert snapshot(output / name) == snapshot(embedded(adapter)[0])
    assert set(open_outputs([output])) == {"adapter", "base"}, "serve takes the folder of several outputs too"
    assert set(open_outputs([output / "base"])) == {"base"}
    with pytest.raises(OutputError, match=r"below it: 2 outputs \(adapter, base\).* as in .*/adapter$"):
        open_output(output)
    compared = lora_clip("compare", output / "adapter", output / "base")
    assert compared.returncode == 0 and "text to image" in compared.stdout, compared.stderr


def test_figures_are_those_of_captions_embedded_again(tmp_path: Path) -> None:
    stored, again = (evaluate(open_output(embedded(both=both)[0]), Wanted()) for both in (True, False))
    assert stored == again
    moved = shutil.copytree(embedded()[0], tmp_path / "output")
    manifest = json.loads((moved / "manifest.json").read_text())
    (moved / "manifest.json").write_text(json.dumps({**manifest, "model": {**manifest["model"], "base": "/gone"}}))
    assert evaluate(open_output(moved), Wanted()) == stored, "no model is needed"
    told = lora_clip("evaluate", moved, "--template", "a photo of {}")
    assert told.returncode == 2 and "/gone" in told.stderr, "other texts than the captions are not there"


def test_captions_that_are_others_by_now_are_embedded_again(tmp_path: Path) -> None:
    """Texts are those of the first output of a comparison; in another the same image may have another caption."""
    from lora_clip.evaluate.run import ranks_of
    from lora_clip.evaluate.texts import texts_of

    first = open_output(embedded()[0])
    asked = texts_of(first.rows, first.rows.ids(), Wanted())
    other = shutil.copytree(embedded()[0], tmp_path / "output")
    metadata = other / "metadata/metadata_000000.parquet"
    table = pq.read_table(metadata)
    place = table.column_names.index("caption")
    changed = table["caption"].to_pylist()[::-1]
    pq.write_table(table.set_column(place, table.schema.field(place), [changed]), metadata)
    texts = other / "text_emb/text_emb_000000.npy"
    np.save(texts, np.load(texts)[::-1].copy())
    second = open_output(other)
    found, wanted = ranks_of(second, second.rows.ids(), asked), ranks_of(first, first.rows.ids(), asked)
    assert (found.first_Q == wanted.first_Q).all()


def test_nothing_is_left_of_texts_when_a_run_begins_anew() -> None:
    output = new_folder() / "output"
    shutil.copytree(embedded()[0], output)
    nursery().predict(*typed(output, "resume=false")).expect(0)
    assert not [name for name in everything(output) if "text_emb" in name]
    assert snapshot(output) == snapshot(embedded(both=False)[0])
