"""`lora-clip classify` and `lora-clip embed-text`: what is written, what is printed, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.jobs import lora_clip, new_folder, nursery, uninterrupted
from helpers.models import save_base
from lora_clip.app.subcommands.embed_text import read_lines
from lora_clip.demo import DEMO
from lora_clip.errors import ConfigError, DataError
from lora_clip.models.logits import LogitScale, read_logit_scale
from lora_clip.search import labels, open_output
from lora_clip.search.labels import embed_labels, label_rows


@pytest.fixture(scope="module")
def adapted() -> Path:
    return uninterrupted("index=true")


def captions(output: Path) -> list[str]:
    return pq.read_table(output / "metadata")["caption"].to_pylist()


# --- classify ----------------------------------------------------------------------------------------------------


def test_most_pictures_get_their_own_caption(adapted: Path) -> None:
    output = new_folder() / "output"
    shutil.copytree(adapted, output)
    names = sorted(set(captions(output)))
    file = output.parent / "labels.txt"
    file.write_text("\n".join([*names, names[0]]))
    done = lora_clip("classify", output, file, "--template", "{}")
    assert done.returncode == 0, done.stderr
    found = pq.read_table(output / "labels.parquet")
    rows = pq.read_table(output / "metadata").sort_by([("shard", "ascending"), ("position", "ascending")])
    assert found.column_names == ["shard", "position", "key", "image_path", "label", "score", "probability"]
    assert all(found[name].equals(rows[name]) for name in ("shard", "position", "key", "image_path"))
    right = [one == other for one, other in zip(found["label"].to_pylist(), rows["caption"].to_pylist(), strict=True)]
    assert np.mean(right) > 0.9
    assert f"400 images, {len(names)} labels" in done.stdout and "images  share  label" in done.stdout
    assert lora_clip("verify", output).returncode == 0, "a file of labels is nothing unexpected"
    nursery().predict(f"output_dir={output}", "resume=false", "data.limit=5").expect(0)
    assert not (output / "labels.parquet").exists(), "it was made from embeddings that are no more"


def test_scores_are_cosines_and_probabilities_a_softmax(adapted: Path, tmp_path: Path) -> None:
    """Beside the same figures from the plain files, in one go; the rows are labelled a few at a time."""
    names, path = ["a red apple", "a green leaf", "a dog"], tmp_path / "labels.parquet"
    collection = open_output(adapted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labels, "COSINES_AT_ONCE", 3 * 7)
        counts = label_rows(collection, names, ["{}"], path)
    images_ND = np.concatenate([np.load(file).astype(np.float32) for file in sorted((adapted / "img_emb").iterdir())])
    cosines_NL = images_ND @ collection.encoder.text(names).T
    softmax_NL = np.exp(np.exp(3.7773) * cosines_NL)  # the demo's temperature
    found = pq.read_table(path)
    assert found["label"].to_pylist() == [names[best] for best in cosines_NL.argmax(axis=1)]
    assert np.allclose(found["score"], cosines_NL.max(axis=1), atol=1e-6)
    assert np.allclose(found["probability"], (softmax_NL / softmax_NL.sum(1, keepdims=True)).max(1), atol=1e-3)
    assert counts == {name: found["label"].to_pylist().count(name) for name in names}


def test_templates_are_averaged(adapted: Path) -> None:
    collection = open_output(adapted)
    mean_LD = embed_labels(collection, ["dog", "cat"], ["a {}", "the {} of a {}"])
    texts = collection.encoder.text(["a dog", "a cat", "the dog of a dog", "the cat of a cat"])
    expected_LD = texts[:2] + texts[2:]
    assert np.allclose(mean_LD, expected_LD / np.linalg.norm(expected_LD, axis=1, keepdims=True), atol=1e-6)
    with pytest.raises(ConfigError, match='template "a photo" has no '):
        embed_labels(collection, ["dog"], ["{}", "a photo"])


def test_the_temperature_is_the_checkpoints(tmp_path: Path) -> None:
    demo = read_logit_scale(DEMO / "base")
    assert demo is not None and demo.scale == pytest.approx(np.exp(3.7773), rel=1e-3) and demo.bias is None
    assert read_logit_scale(save_base(tmp_path / "base")) is not None
    assert read_logit_scale(DEMO / "adapter") is None
    cosines_NL = np.array([[0.1, 0.3], [0.2, 0.2]])
    assert np.allclose(LogitScale(10, None).best_probability(cosines_NL), [1 / (1 + np.exp(-2)), 0.5])
    assert np.allclose(LogitScale(10, -3).best_probability(cosines_NL), [0.5, 1 / (1 + np.exp(1))])


# --- embed-text --------------------------------------------------------------------------------------------------


def test_texts_by_the_model_of_an_output_or_by_that_model_itself(adapted: Path, tmp_path: Path) -> None:
    texts = ["a red apple", "grün", 'a "dog"']
    file = tmp_path / "texts.txt"
    file.write_text("\r\n".join(texts))
    done = lora_clip("embed-text", file, "--like", adapted)
    assert done.returncode == 0 and done.stdout.startswith("3 texts, "), done.stderr
    found_ND = np.load(tmp_path / "texts.npy")
    assert found_ND.dtype == np.float32 and np.allclose(np.linalg.norm(found_ND, axis=1), 1, atol=1e-6)
    assert np.allclose(found_ND, open_output(adapted).encoder.text(texts), atol=1e-6)
    table = pq.read_table(tmp_path / "texts.parquet")
    assert table["text"].to_pylist() == texts
    model = json.loads((table.schema.metadata or {})[b"lora_clip"])
    manifest = json.loads((adapted / "manifest.json").read_text())
    assert model["sha256"] == {name: manifest["fingerprint"][name] for name in ("base", "adapter")}
    other = tmp_path / "other.npy"
    assert lora_clip("embed-text", file, "--adapter", DEMO / "adapter", "--output", other).returncode == 0
    assert other.read_bytes() == (tmp_path / "texts.npy").read_bytes()
    assert isinstance(table.schema, pa.Schema) and file.read_text().startswith("a red apple")


def test_another_model_in_the_place_of_the_outputs_is_refused(adapted: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a\n")
    done = lora_clip("embed-text", tmp_path / "texts.txt", "--like", adapted, "--base", save_base(tmp_path / "base"))
    assert done.returncode == 2 and done.stderr.startswith("error: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "texts.txt"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "by which model? Give --like OUTPUT"),
        (("--output", "texts.bin"), "give a name that ends in .npy"),
    ],
)
def test_what_is_missing_is_said(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a\n")
    done = lora_clip("embed-text", "texts.txt", *words, folder=tmp_path)
    assert done.returncode == 2 and message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]


def test_a_line_is_a_text(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_bytes("\ufeffa\u2028b\r\n c \n".encode())
    assert read_lines(file) == ["a\u2028b", " c "]
    for content, message in ((b"", "is empty"), (b"a\n\nb\n \n", "line 2 is empty, and 1 more"), (b"\xff", "UTF-8")):
        file.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_lines(file)
    with pytest.raises(DataError, match=r"none cannot be read: No such file or directory$"):
        read_lines(tmp_path / "none")
