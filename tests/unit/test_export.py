"""An export is its output as a table: all of it, only what is new of it, and never two kinds in one."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from helpers.embeddings import vectors, write_output
from helpers.exports import read_export, same_as_output, stamps, vectors_of
from lora_clip.errors import ConfigError, OutputError
from lora_clip.export import lance_table
from lora_clip.export.base import TARGETS
from lora_clip.export.run import Exported, describe, export

needs_lance = pytest.mark.skipif(find_spec("lance") is None, reason="pylance is not installed: the extra export has it")
KINDS = [pytest.param(kind, marks=needs_lance if kind == "lance" else ()) for kind in TARGETS]
every_kind = pytest.mark.parametrize("kind", KINDS)


def counts(done: Exported) -> tuple[int, int, int, int]:
    return done.new, done.replaced, done.gone, done.kept


def write_texts(root: Path, shard: int, texts_ND: np.ndarray) -> None:
    (root / "text_emb").mkdir(exist_ok=True)
    np.save(root / "text_emb" / f"text_emb_{shard:06d}.npy", texts_ND)


@every_kind
def test_an_export_holds_each_row_once_and_its_vector_bit_for_bit(kind: str, tmp_path: Path) -> None:
    root = write_output(tmp_path / "out", {0: vectors(50), 3: vectors(9_000, seed=1), 7: vectors(1, seed=2)})
    done = export(root, kind, tmp_path / "to")
    assert counts(done) == (3, 0, 0, 0) and done.rows == 9_051
    table = read_export(kind, tmp_path / "to")
    same_as_output(table, root)
    assert str(table.schema.field("embedding").type).startswith("fixed_size_list<")
    assert str(table.schema.field("embedding").type).endswith(": halffloat>[16]")


@every_kind
def test_float32_stays_float32(kind: str, tmp_path: Path) -> None:
    root = write_output(tmp_path / "out", {0: vectors(50).astype(np.float32)})
    export(root, kind, tmp_path / "to")
    table = read_export(kind, tmp_path / "to")
    same_as_output(table, root)
    assert vectors_of(table).dtype == np.float32


@every_kind
def test_the_same_again_writes_nothing(kind: str, tmp_path: Path) -> None:
    root = write_output(tmp_path / "out", {0: vectors(50), 1: vectors(60)})
    export(root, kind, tmp_path / "to")
    before = stamps([tmp_path / "to"])
    assert counts(export(root, kind, tmp_path / "to")) == (0, 0, 0, 2)
    assert before and stamps([tmp_path / "to"]) == before


@every_kind
def test_only_what_is_new_is_written(kind: str, tmp_path: Path) -> None:
    root = write_output(tmp_path / "out", {0: vectors(50), 1: vectors(60)})
    export(root, kind, tmp_path / "to")
    before = stamps([tmp_path / "to"])
    write_output(root, {2: vectors(70, seed=3)})
    assert counts(export(root, kind, tmp_path / "to")) == (1, 0, 0, 2)
    same_as_output(read_export(kind, tmp_path / "to"), root)
    after = stamps([tmp_path / "to"])
    again = [path for path in before if after[path] != before[path]]
    assert after.keys() > before.keys() and [Path(path).name for path in again if not path.endswith("hint.json")] == []


@every_kind
def test_a_shard_that_was_embedded_again_replaces_its_rows(kind: str, tmp_path: Path) -> None:
    root = write_output(tmp_path / "out", {0: vectors(50), 1: vectors(60), 2: vectors(70)})
    export(root, kind, tmp_path / "to")
    write_output(root, {1: vectors(65, seed=9)})
    assert counts(export(root, kind, tmp_path / "to")) == (0, 1, 0, 2)
    same_as_output(read_export(kind, tmp_path / "to"), root)


@every_kind
def test_a_shard_that_the_output_holds_no_more_is_taken_out(kind: str, tmp_path: Path) -> None:
    root = write_output(tmp_path / "out", {0: vectors(50), 1: vectors(60)})
    export(root, kind, tmp_path / "to")
    (root / "img_emb/img_emb_000000.npy").unlink()
    assert counts(export(root, kind, tmp_path / "to")) == (0, 0, 1, 1)
    same_as_output(read_export(kind, tmp_path / "to"), root)
    assert counts(export(root, kind, tmp_path / "to")) == (0, 0, 0, 1)


@every_kind
def test_embeddings_of_two_kinds_are_never_mixed(kind: str, tmp_path: Path) -> None:
    one = write_output(tmp_path / "one", {0: vectors(5)})
    other = write_output(tmp_path / "other", {1: vectors(5)}, fingerprint="another")
    export(one, kind, tmp_path / "to")
    before = stamps([tmp_path / "to"])
    with pytest.raises(OutputError, match=r"(?s)another kind.*model: model there, another in .*other.*--into"):
        export(other, kind, tmp_path / "to")
    assert stamps([tmp_path / "to"]) == before


@every_kind
def test_texts_are_a_column_where_there_are_some(kind: str, tmp_path: Path) -> None:
    root = write_output(tmp_path / "out", {0: vectors(50), 1: vectors(3)})
    export(root, kind, tmp_path / "to")
    texts_ND = vectors(50, seed=5)
    texts_ND[7] = 0  # an image without a caption
    write_texts(root, 0, texts_ND)
    assert counts(export(root, kind, tmp_path / "to")) == (0, 2, 0, 0), "all rows have the columns of all"
    assert counts(export(root, kind, tmp_path / "to")) == (0, 0, 0, 2)
    table = read_export(kind, tmp_path / "to")
    same_as_output(table, root)
    found = table.column("text_embedding").to_pylist()
    assert [row is None for row in found] == [number == 7 or number >= 50 for number in range(53)]
    assert np.array_equal(np.array(found[8], np.float16), texts_ND[8])


@every_kind
def test_an_output_without_embeddings_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="give the output_dir of a job"):
        export(tmp_path, kind, tmp_path / "to")
    with pytest.raises(OutputError, match="holds no embeddings: run the job first"):
        export(write_output(tmp_path / "out", {}), kind, tmp_path / "to")


@every_kind
def test_a_shard_that_cannot_be_read_is_told_and_leaves_what_was_there(kind: str, tmp_path: Path) -> None:
    root = write_output(tmp_path / "out", {0: vectors(50)})
    export(root, kind, tmp_path / "to")
    write_output(root, {1: vectors(60)})
    (root / "metadata/metadata_000001.parquet").write_bytes(b"cut short")
    with pytest.raises(OutputError, match=r"^shard 1 of .* cannot be read"):
        export(root, kind, tmp_path / "to")
    assert len(read_export(kind, tmp_path / "to")) == 50
    write_output(root, {1: vectors(60)})
    export(root, kind, tmp_path / "to")
    same_as_output(read_export(kind, tmp_path / "to"), root)


# --- Parquet ---------------------------------------------------------------------------------------------------------


def test_row_groups_are_large_and_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_clip.export.parquet.GROUP_BYTES", 10_000 * 32)
    export(write_output(tmp_path / "out", {3: vectors(40_000)}), "parquet", tmp_path / "to")
    about = pq.read_metadata(tmp_path / "to/embeddings_000003.parquet")
    groups = [about.row_group(number) for number in range(about.num_row_groups)]
    assert [group.num_rows for group in groups] == [16_384, 16_384, 7_232]
    assert {group.column(number).compression for group in groups for number in range(group.num_columns)} == {"ZSTD"}


def test_a_file_tells_which_embeddings_it_holds(tmp_path: Path) -> None:
    root = write_output(tmp_path / "out", {3: vectors(4)})
    export(root, "parquet", tmp_path / "to")
    note = json.loads(pq.read_schema(tmp_path / "to/embeddings_000003.parquet").metadata[b"lora_clip"])
    assert note["fingerprint"] == {"model": "model", "image_key": None} and note["shard"] == 3


def test_a_file_of_another_hand_is_never_deleted_nor_mixed_in(tmp_path: Path) -> None:
    root = write_output(tmp_path / "out", {3: vectors(4)})
    (tmp_path / "to").mkdir()
    (tmp_path / "to/mine.parquet").write_bytes((root / "metadata/metadata_000003.parquet").read_bytes())
    with pytest.raises(OutputError, match=r"mine.parquet was not written by lora-clip export: give another --into"):
        export(root, "parquet", tmp_path / "to")
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["mine.parquet"]


# --- Hugging Face ----------------------------------------------------------------------------------------------------


def test_datasets_reads_the_folder_with_the_features_of_its_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    root = write_output(tmp_path / "out", {0: vectors(50), 1: vectors(60)})
    export(root, "hf", tmp_path / "to")
    images = datasets.load_dataset(str(tmp_path / "to"), split="train", cache_dir=str(tmp_path / "cache"))
    same_as_output(images.data.table.combine_chunks().select(images.column_names), root)
    card = datasets.Features._from_yaml_list(datasets_card(tmp_path / "to/README.md")["dataset_info"]["features"])
    assert images.features == card and card["embedding"].length == 16


def datasets_card(path: Path) -> dict:
    import yaml

    return dict(yaml.safe_load(path.read_text().split("---\n")[1]))


def test_the_card_has_the_fingerprint_and_the_model(tmp_path: Path) -> None:
    root = write_output(tmp_path / "out", {0: vectors(50)})
    export(root, "hf", tmp_path / "to")
    manifest = {"format": "lora_clip 2", "model": {"base": "openai/clip", "adapter": None, "lora": None}}
    (root / "manifest.json").write_text(json.dumps(manifest))
    done = export(root, "hf", tmp_path / "to")
    card = (tmp_path / "to/README.md").read_text()
    assert counts(done) == (0, 0, 0, 1) and done.finished
    assert "`openai/clip`. Adapter: `none`" in card and '"model": "model"' in card


# --- Lance -----------------------------------------------------------------------------------------------------------


@needs_lance
def test_each_commit_is_a_version_and_an_older_one_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lance

    monkeypatch.setattr(lance_table, "ROWS_PER_COMMIT", 100)
    root = write_output(tmp_path / "out", {number: vectors(50, seed=number) for number in range(6)})
    export(root, "lance", tmp_path / "to")
    path = str(tmp_path / "to/embeddings.lance")
    versions = [one["version"] for one in lance.dataset(path).versions()]
    assert sorted({lance.dataset(path, version=one).count_rows() for one in versions}) == [100, 200, 300]


@needs_lance
@pytest.mark.parametrize("seen", [1, 2, 3])
def test_rows_of_a_commit_that_was_not_told_of_are_replaced(
    seen: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lance_table, "ROWS_PER_COMMIT", 100)
    root = write_output(tmp_path / "out", {number: vectors(50, seed=number) for number in range(6)})
    tell, calls = lance_table.LanceTable._tell, []

    def dies(self: lance_table.LanceTable, *told: object) -> None:
        calls.append(told)
        if len(calls) == seen:
            raise KeyboardInterrupt
        tell(self, *told)  # type: ignore[arg-type]

    monkeypatch.setattr(lance_table.LanceTable, "_tell", dies)
    with pytest.raises(KeyboardInterrupt):
        export(root, "lance", tmp_path / "to")
    assert len(read_export("lance", tmp_path / "to")) == 100 * seen
    done = export(root, "lance", tmp_path / "to")
    same_as_output(read_export("lance", tmp_path / "to"), root)
    assert (done.new, done.replaced, done.kept) == (6 - 2 * seen, 2, 2 * (seen - 1))


@needs_lance
def test_a_table_that_its_user_compacted_or_cut_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lance

    monkeypatch.setattr(lance_table, "ROWS_PER_COMMIT", 100)
    root = write_output(tmp_path / "out", {number: vectors(50, seed=number) for number in range(6)})
    export(root, "lance", tmp_path / "to")
    path = str(tmp_path / "to/embeddings.lance")
    lance.dataset(path).optimize.compact_files()
    write_output(root, {2: vectors(55, seed=77)})
    assert counts(export(root, "lance", tmp_path / "to")) == (0, 1, 0, 5)
    same_as_output(read_export("lance", tmp_path / "to"), root)
    lance.dataset(path).delete("shard = 4 AND position > 10")
    assert counts(export(root, "lance", tmp_path / "to")) == (0, 1, 0, 5)
    same_as_output(read_export("lance", tmp_path / "to"), root)


@needs_lance
def test_a_path_that_ends_in_lance_is_the_dataset_itself(tmp_path: Path) -> None:
    import lance

    done = export(write_output(tmp_path / "out", {0: vectors(5)}), "lance", tmp_path / "images.lance")
    assert lance.dataset(str(tmp_path / "images.lance")).count_rows() == 5
    assert 'open_table("images")' in describe(done)


def test_without_lance_one_message_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_output(tmp_path / "out", {0: vectors(5)})
    monkeypatch.setattr("lora_clip.extras.installed", lambda module: False)
    monkeypatch.setitem(sys.modules, "lance", None)
    with pytest.raises(ConfigError, match=r"lance is not installed: type .* pip install 'lora-clip\[export\]'"):
        export(root, "lance", tmp_path / "to")
    assert counts(export(root, "parquet", tmp_path / "to")) == (1, 0, 0, 0)
