"""Searching an output, from shard to hit: the adapter finds what the base does not, and no other model is used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import CLIPModel, CLIPTokenizer

from helpers.images import encode, photo, write_tar
from helpers.jobs import lora_clip, new_folder, nursery, uninterrupted
from helpers.models import edit_weights, quiet_peft, save_adapter, save_base
from lora_clip.app.subcommands.search import show
from lora_clip.demo import DEMO
from lora_clip.errors import DataError, ModelError, OutputError
from lora_clip.models.checkpoint import Checkpoint
from lora_clip.models.clip import Clip
from lora_clip.models.embedder import MergedEmbedder
from lora_clip.models.text import TextEncoder
from lora_clip.search import Collection, Hit, open_output
from lora_clip.search.page import contact_sheet
from lora_clip.search.query import QueryEncoder

HOSTILE = '<script>alert("x")</script>'


@pytest.fixture(scope="module")
def adapted() -> Path:
    return uninterrupted("index=true")


@pytest.fixture(scope="module")
def base() -> Path:
    return uninterrupted("model=demo_base")


@pytest.fixture(scope="module")
def opened(adapted: Path) -> Collection:
    return open_output(adapted)


def recall(root: Path, k: int) -> float:
    """The share of all captions that find their own image among the first k."""
    collection = open_output(root)
    ids_N = np.concatenate([ids_N for ids_N, _ in collection.rows.stream()])
    captions = [str(row["caption"]) for row in collection.rows.metadata(ids_N)]
    found = collection.nearest(collection.encoder.text(captions), k)
    return float(
        np.mean([caption in [hit.caption for hit in hits] for caption, hits in zip(captions, found, strict=True)])
    )


def test_the_adapter_finds_pictures_that_the_base_does_not(adapted: Path, base: Path) -> None:
    """Film negatives of emoji that the adapter never saw."""
    assert recall(adapted, 1) > 0.9 and recall(adapted, 10) > 0.97
    assert recall(base, 1) < 0.1 and recall(base, 10) < 0.2


def test_three_lines_give_keys_and_pictures(adapted: Path) -> None:
    collection = open_output(adapted)
    hits = collection.search("a red apple", k=3)
    assert hits[0].caption == "red apple" and len(hits[0].key) == 9 and hits[0].image().mode == "RGB"
    assert hits[0].score > hits[1].score > hits[2].score and hits[0].shard.endswith(".tar")


def test_the_job_indexes_and_the_index_finds_what_looking_at_all_finds(opened: Collection) -> None:
    assert opened.index is not None and len(opened.index.rows) == 400
    with_index = opened.search("a dog")
    opened.index, index = None, opened.index
    assert opened.search("a dog") == with_index
    opened.index = index


def test_an_image_finds_itself_however_it_is_given(opened: Collection, tmp_path: Path) -> None:
    hit = opened.search("a red apple", k=1)[0]
    stored = opened.pictures.sample(hit.shard_id, hit.position).image
    (tmp_path / "apple.jpg").write_bytes(stored)
    for query in (tmp_path / "apple.jpg", str(tmp_path / "apple.jpg"), stored, hit.image()):
        found = opened.search(query, k=1)[0]
        assert found.key == hit.key and found.score == pytest.approx(1, abs=2e-3)


def test_a_row_finds_others_by_its_path_url_or_number(opened: Collection) -> None:
    hit = opened.search("a red apple", k=1)[0]
    like = opened.like(hit.shard_id, hit.row, k=5)
    assert hit.key not in [other.key for other in like] and len(like) == 5
    assert opened.search(hit.image_path, k=5) == like
    assert hit.url is not None and opened.search(hit.url, k=5) == like
    assert len(opened.search("a red apple", k=10_000)) == 400


def test_queries_that_lead_nowhere_say_so(opened: Collection, tmp_path: Path) -> None:
    (tmp_path / "no.jpg").write_bytes(b"no image")
    for query, said in (
        ("no/such.jpg", "no such file"),
        (tmp_path / "gone", "no such file"),
        (tmp_path / "no.jpg", "not an image"),
        ("https://example.org/nobody", "no row"),
        (" ", "empty query"),
    ):
        with pytest.raises(DataError, match=said):
            opened.search(query)
    with pytest.raises(DataError, match="no row 99999"):
        opened.like(0, 99_999)
    assert opened.search("x" * 5000, k=1), "a text longer than the model's context is cut"


def test_another_model_is_refused(adapted: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(DEMO / "adapter", tmp_path / "adapter"))
    edit_weights(other, lambda weights: {name: weight * 2 for name, weight in weights.items()})
    with pytest.raises(OutputError, match="adapter of the embeddings"):
        open_output(adapted, base=str(DEMO / "base"), adapter=str(other)).search("a dog")
    moved = Path(shutil.copytree(DEMO / "base", tmp_path / "moved"))
    assert open_output(adapted, base=str(moved)).search("a red apple")[0].caption == "red apple"
    config = json.loads((moved / "preprocessor_config.json").read_text())
    (moved / "preprocessor_config.json").write_text(json.dumps({**config, "resample": 2}))
    with pytest.raises(OutputError, match="preprocessing of the embeddings"):
        open_output(adapted, base=str(moved)).search("a dog")


def test_an_output_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"no fingerprint\.json"):
        open_output(tmp_path)


def test_a_text_is_what_transformers_makes_of_it() -> None:
    ours = QueryEncoder(MergedEmbedder(Checkpoint("", DEMO / "base", None, None)), "exact").text(["a red apple", "x"])
    model, tokenizer = (
        CLIPModel.from_pretrained(DEMO / "base", dtype=torch.float32),
        CLIPTokenizer.from_pretrained(DEMO / "base"),
    )
    tokens = tokenizer(["a red apple", "x"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        theirs = functional.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


def with_tokenizer(base: Path) -> Path:
    """The base with a tokenizer that spells every word."""
    letters = [chr(code) for code in range(97, 123)]
    vocab = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    numbered: dict[str, Any] = {token: number for number, token in enumerate(vocab)}
    CLIPTokenizer(vocab=numbered, merges=[]).save_pretrained(base)
    return base


def test_what_an_adapter_holds_for_text_counts(tmp_path: Path) -> None:
    base = with_tokenizer(save_base(tmp_path / "base"))
    adapter = save_adapter(tmp_path / "adapter", base, "CLIPModel")
    vision = save_adapter(tmp_path / "vision", base, "CLIPVisionModelWithProjection")
    plain = TextEncoder(Clip(), base, None)(["abc", "de"])
    assert torch.equal(TextEncoder(Clip(), base, vision)(["abc", "de"]), plain)
    adapted = TextEncoder(Clip(), base, adapter)(["abc", "de"])
    assert (adapted - plain).abs().max() > 1e-3
    from peft import PeftModel

    with quiet_peft():
        model: Any = PeftModel.from_pretrained(CLIPModel.from_pretrained(base), str(adapter)).eval()
    tokens = CLIPTokenizer.from_pretrained(base)(["abc", "de"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        theirs = functional.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)
    torch.testing.assert_close(adapted, theirs, atol=1e-5, rtol=0)


def test_a_model_without_tokenizer_takes_images_only(tmp_path: Path) -> None:
    encoder = QueryEncoder(MergedEmbedder(Checkpoint("", save_base(tmp_path / "base"), None, None)), "exact")
    assert encoder.image(photo(40, 30)).shape == (16,)
    with pytest.raises(ModelError, match="only images"):
        encoder.text(["abc"])


def test_a_hit_in_a_folder_is_told_by_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def hit(shard: Path, caption: str | None) -> Hit:
        return Hit(0.5, "a", str(shard), 0, caption, None, None, f"{shard}/a.jpg", 1, 1, 0, 0, None)  # type: ignore[arg-type]

    show([("red", [hit(tmp_path, None), hit(tmp_path / "0.tar", "apple")])], as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "red", f"   1   0.500  a  {tmp_path}/a.jpg", f"   2   0.500  a  {tmp_path}/0.tar  apple"
    ]  # fmt: skip


def test_the_command_prints_hits_and_writes_a_page(adapted: Path, tmp_path: Path) -> None:
    page = tmp_path / "sheet.html"
    done = lora_clip("search", adapted, "a red apple", "a dog", "--k", 3, "--output", page)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "a red apple" and lines[1].split()[0] == "1" and lines[1].endswith("red apple")
    assert lines[4] == "a dog" and lines[-1].endswith(str(page)) and not done.stderr
    text = page.read_text()
    assert (
        text.count("<figure>") == 6
        and text.count("data:image/jpeg;base64,") == 6
        and "http" not in text.partition("<body>")[0].replace("http-equiv", "")
    )


def test_the_command_prints_json_and_its_mistakes(adapted: Path, tmp_path: Path) -> None:
    done = lora_clip("search", adapted, "a red apple", "--k", 2, "--json")
    found = json.loads(done.stdout)
    assert found[0]["query"] == "a red apple" and found[0]["hits"][0]["caption"] == "red apple"
    assert not (adapted / "search.html").exists()
    failed = lora_clip("search", tmp_path, "a dog")
    assert failed.returncode == 2 and failed.stderr.startswith("error: ") and "Traceback" not in failed.stderr


def test_the_index_command_says_how_well_it_finds(adapted: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(adapted, tmp_path / "copy"))
    assert "up to date, 400 rows, Flat, recall@10 1.000" in lora_clip("index", copy).stdout
    done = lora_clip("index", copy, "--factory", "HNSW16")
    assert done.returncode == 0 and "400 rows added, 400 in all, HNSW16" in done.stdout
    failed = lora_clip("index", copy, "--factory", "NO")
    assert failed.returncode == 2 and failed.stderr.startswith("error: FAISS does not take")


def test_what_strangers_wrote_does_no_harm(tmp_path: Path) -> None:
    members = {f"{HOSTILE.replace('/', '')}{number}.png": encode(photo(20, 20, number), "PNG") for number in range(3)}
    members |= {name.replace(".png", ".txt"): HOSTILE.encode() for name in members}
    tar = write_tar(tmp_path / "in" / "0.tar", members)
    output = new_folder() / "output"
    nursery().predict("data=shards", f"data.shards={tar}", f"output_dir={output}").expect(0)
    hits = open_output(output).search(HOSTILE, k=3)
    page = contact_sheet(HOSTILE, HOSTILE, [(HOSTILE, hits)])
    assert "<script" not in page and page.count("&lt;script&gt;") > 6 and "default-src 'none'" in page
    tar.unlink()
    assert contact_sheet("t", "m", [("q", open_output(output).search("a", k=3))]).count("no picture") == 3
    with pytest.raises(DataError):
        hits[0].image()
