"""verify: every kind of damage is found, and named."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.jobs import new_folder
from lora_clip.output.housekeeping import recover
from lora_clip.output.store import Store
from lora_clip.output.verify import sample, verify
from lora_clip.types import ImageRow, Reject, WorkRange

TARGETS = {0: 6, 1: 0, 2: 4, 3: 2}
WIDTH = 8


def unit_rows(count: int, seed: int, dtype: str = "float16") -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, WIDTH))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(dtype)


def rows_of(shard: int, positions: list[int]) -> list[ImageRow]:
    return [ImageRow(f"{shard}/{one}", str(one), shard, one, 1, 1, None, None, None) for one in positions]


@pytest.fixture
def output() -> Path:
    """A sound output: a shard with a reject, an empty one, a plain one, and one of rejects alone."""
    store = Store(new_folder())
    store.write(
        0, WorkRange(0, 0, 6), True, unit_rows(5, 0), rows_of(0, [0, 1, 2, 4, 5]), [Reject(0, 3, "3", "read", "gone")]
    )
    store.write(1, WorkRange(2, 0, 4), True, unit_rows(4, 2), rows_of(2, [0, 1, 2, 3]), [])
    rejects = [Reject(3, position, str(position), "decode", "bad") for position in (0, 1)]
    store.write(1, WorkRange(3, 0, 2), True, np.empty((0, WIDTH), np.float16), [], rejects)
    return store.root


@pytest.fixture
def with_texts() -> Path:
    """A sound output of images and captions, of which three of four are there in a shard."""
    store = Store(new_folder())
    for shard, captions in ((0, ("a", None, "b", " c")), (2, ("", "d", "e", "f"))):
        rows = [replace(row, caption=text) for row, text in zip(rows_of(shard, [0, 1, 2, 3]), captions, strict=True)]
        store.write(0, WorkRange(shard, 0, 4), True, unit_rows(4, shard), rows, [], texts_ND=unit_rows(4, shard + 9))
    return store.root


TEXTS = {0: 4, 2: 4}


def test_captions_are_verified_and_counted(with_texts: Path) -> None:
    verdict = verify(with_texts, TEXTS)
    assert verdict.problems == [] and verdict.captions == 6 and verdict.rows == 8
    proven = verify(with_texts, TEXTS, proven=TEXTS)
    assert proven.problems == [] and proven.captions == 6


@pytest.mark.parametrize("proven", [(), (0, 2)])
def test_a_missing_file_of_captions(with_texts: Path, proven: tuple[int, ...]) -> None:
    (with_texts / "text_emb/text_emb_000002.npy").unlink()
    problem, *_ = verify(with_texts, TEXTS, proven=proven).problems
    assert problem == "shard 2: 0 of 4 images are committed, text_emb/text_emb_000002.npy is gone"


def test_damaged_captions(with_texts: Path) -> None:
    path = with_texts / "text_emb/text_emb_000002.npy"
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    assert "shard 2: text_emb changed since it was written (its SHA-256 differs)" in verify(with_texts, TEXTS).problems
    path.write_bytes(sound[:-2])
    assert "its size differs" in verify(with_texts, TEXTS, proven=TEXTS).problems[0]
    path.write_bytes(sound)
    forge(with_texts, "text_emb", 2, edit_rows(lambda rows: rows * 2))
    assert verify(with_texts, TEXTS).problems == ["shard 2: 4 embeddings of text_emb are not finite vectors of norm 1"]
    forge(with_texts, "text_emb", 2, edit_rows(lambda rows: np.ascontiguousarray(rows[:-1])))
    assert "text_emb is (3, 8) float16, (4, 8) float16 is expected" in verify(with_texts, TEXTS).problems[0]


def test_a_shard_without_captions_among_those_with_some(with_texts: Path) -> None:
    Store(with_texts).write(0, WorkRange(3, 0, 2), True, unit_rows(2, 3), rows_of(3, [0, 1]), [])
    assert verify(with_texts, {**TEXTS, 3: 2}).problems == ["shard 3: it has no text_emb, where other shards have one"]
    (with_texts / "text_emb/text_emb_000007.npy").write_bytes(b"")
    assert "text_emb/text_emb_000007.npy is not accounted for" in verify(with_texts, {**TEXTS, 3: 2}).problems[-1]


def test_a_folder_of_that_name_in_an_output_of_images_alone_is_the_users(output: Path) -> None:
    own = output / "text_emb/text_emb_000000.npy"
    own.parent.mkdir()
    own.write_bytes(b"mine")
    verdict = verify(output, TARGETS)
    assert verdict.problems == [] and verdict.captions is None
    recover(Store(output), TARGETS)
    assert own.read_bytes() == b"mine"


def problems(output: Path) -> str:
    return "\n".join(verify(output, TARGETS).problems)


def test_a_sound_output(output: Path) -> None:
    verdict = verify(output, TARGETS)
    assert verdict.sound and verdict.problems == []
    assert (verdict.images, verdict.rows, verdict.rejects, verdict.shards) == (12, 9, 3, 3)
    assert (verdict.width, verdict.dtype) == (WIDTH, "float16")


FILES = (
    "img_emb/img_emb_000000.npy", "img_emb/img_emb_000002.npy", "metadata/metadata_000000.parquet",
    "metadata/metadata_000002.parquet", "rejects/rejects_000000.parquet", "rejects/rejects_000003.parquet",
)  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_bit_is_found(name: str, output: Path) -> None:
    content = (output / name).read_bytes()
    for place in range(0, len(content), max(1, len(content) // 40)):
        (output / name).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert f"shard {int(name[-10:].split('.')[0][-6:])}: {name.split('/')[0]} changed" in problems(output)


@pytest.mark.parametrize("name", FILES)
def test_a_deleted_file_is_found(name: str, output: Path) -> None:
    (output / name).unlink()
    assert f"{name} is gone" in problems(output)


def test_a_lost_ledger_is_found(output: Path) -> None:
    shutil.rmtree(output / "ranks")
    assert "shard 0: 0 of 6 images are committed" in problems(output)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_found(name: str, output: Path) -> None:
    (output / name).write_bytes((output / name).read_bytes()[:-1])
    assert "changed" in problems(output)


@pytest.mark.parametrize(
    "name", ["img_emb/img_emb_000001.npy", "img_emb/x.npy", "metadata/metadata_000007.parquet", "rejects/y"]
)
def test_a_file_too_many_is_found(name: str, output: Path) -> None:
    shutil.copy(output / "img_emb/img_emb_000000.npy", output / name)
    assert problems(output) == f"{name} is not accounted for by the ledger"


def test_a_shard_that_is_missing_or_not_finished_is_found(output: Path) -> None:
    assert "shard 9: 0 of 5" in "\n".join(verify(output, TARGETS | {9: 5}).problems)
    assert "shard 2: 4 of 8" in "\n".join(verify(output, TARGETS | {2: 8}).problems)
    assert "shard 3 is in the ledger" in "\n".join(verify(output, {0: 6, 2: 4}).problems)
    store = Store(output)
    store.write(0, WorkRange(4, 0, 3), False, unit_rows(3, 4), rows_of(4, [0, 1, 2]), [])
    assert "shard 4: 3 of 3 images are committed, the shard is not finished" in "\n".join(
        verify(output, TARGETS | {4: 3}).problems
    )


def forge(output: Path, kind: str, shard: int, change: Callable[[Path], None], **fields: int) -> None:
    """Change a file and make the ledger agree with it: what is left to find is what the content says of itself."""
    path = Store(output).path(kind, shard)
    change(path)
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    for ledger in (output / "ranks").iterdir():
        lines = [json.loads(line) for line in ledger.read_text().splitlines()]
        for line in lines:
            if line["shard"] == shard:
                line["checksums"][kind] = checksum
                line.update(fields)
        ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))


def edit_rows(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    return lambda path: np.save(path, change(np.load(path).copy()))


def scaled(rows: np.ndarray, factor: float) -> np.ndarray:
    rows[1] = rows[1] * factor
    return rows


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: scaled(rows, float("nan")), "1 embeddings are not finite vectors of norm 1"),
        (lambda rows: scaled(rows, float("inf")), "1 embeddings are not"),
        (lambda rows: scaled(rows, 0), "1 embeddings are not"),
        (lambda rows: scaled(rows, 1.01), "1 embeddings are not"),
        (lambda rows: rows[:-1], "(3, 8)"),
        (lambda rows: np.concatenate([rows, rows[:1]]), "(5, 8)"),
        (lambda rows: rows[:, :-1], "(4, 7)"),
        (lambda rows: rows.astype(np.float32), "float32"),
        (lambda rows: rows.astype(np.float64), "float64"),
        (lambda rows: rows.astype(">f2"), ">f2"),
        (lambda rows: np.asfortranarray(rows), "C-order"),
        (lambda rows: rows.reshape(4, 2, 4), "(4, 2, 4)"),
        (lambda rows: rows.reshape(-1), "(32,)"),
    ],
)
def test_embeddings_that_are_not_sound_are_found(
    change: Callable[[np.ndarray], np.ndarray], words: str, output: Path
) -> None:
    forge(output, "img_emb", 2, edit_rows(change))
    assert "shard 2: " in problems(output) and words in problems(output), problems(output)


def overwrite(content: bytes) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_bytes(content)

    return change


def test_what_cannot_be_read_is_found(output: Path) -> None:
    forge(output, "img_emb", 2, overwrite(b""))
    forge(output, "metadata", 0, overwrite(b"PAR1"))
    assert "shard 2: its files cannot be read" in problems(output)
    assert "shard 0: its files cannot be read" in problems(output)


def test_an_object_array_is_not_unpickled(output: Path) -> None:
    forge(output, "img_emb", 2, lambda path: np.save(path, np.array([{}], dtype=object), allow_pickle=True))
    assert "cannot be read" in problems(output)


def edit_table(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    return lambda path: pq.write_table(change(pq.read_table(path)), path)


def test_metadata_that_is_not_sound_is_found(output: Path) -> None:
    forge(output, "metadata", 2, edit_table(lambda table: table.take([0, 1, 1, 3])))
    assert "1 images twice, 1 neither embedded nor rejected" in problems(output)
    assert "not in the order" in problems(output)


def test_metadata_in_another_order_is_found(output: Path) -> None:
    forge(output, "metadata", 2, edit_table(lambda table: table.take([1, 0, 2, 3])))
    assert problems(output) == "shard 2: its rows are not in the order of the input"


def test_fewer_rows_than_the_ledger_says_are_found(output: Path) -> None:
    forge(output, "metadata", 2, edit_table(lambda table: table.slice(0, 3)))
    assert "metadata has 3 rows, the ledger says 4" in problems(output)


def test_an_image_that_is_both_row_and_reject_is_found(output: Path) -> None:
    forge(output, "metadata", 0, edit_table(lambda table: table.take([0, 1, 2, 3, 4]).set_column(
        3, "position", pa.array([0, 1, 3, 4, 5], pa.int64()))))  # fmt: skip
    assert "1 images twice, 1 neither" in problems(output)


def test_an_image_that_became_neither_row_nor_reject_is_found(output: Path) -> None:
    forge(output, "metadata", 2, edit_table(lambda table: table.slice(0, 3)), rows=3)
    forge(output, "img_emb", 2, edit_rows(lambda rows: rows[:-1]))
    assert problems(output) == "shard 2: 0 images twice, 1 neither embedded nor rejected"


# --- What an earlier run has proven --------------------------------------------------------------------------------


def test_a_proven_shard_is_not_read_again_but_looked_for(output: Path) -> None:
    npy = output / "img_emb/img_emb_000002.npy"
    before = npy.read_bytes()
    npy.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert "img_emb changed" in problems(output)
    verdict = verify(output, TARGETS, proven={0, 2, 3})
    assert verdict.problems == [] and (verdict.width, verdict.dtype) == (WIDTH, "float16")
    assert (verdict.images, verdict.rows, verdict.rejects, verdict.shards) == (12, 9, 3, 3)
    assert "shard 2: img_emb changed" in "\n".join(verify(output, TARGETS, proven={0, 3}).problems)
    npy.write_bytes(before[:-1])
    assert verify(output, TARGETS, proven={0, 2, 3}).problems == [
        "shard 2: img_emb changed since it was written (its size differs)"
    ]
    npy.unlink()
    assert "img_emb/img_emb_000002.npy is gone" in "\n".join(verify(output, TARGETS, proven={0, 2, 3}).problems)


def test_counts_of_a_shard_that_is_not_read_are_those_of_its_images(output: Path) -> None:
    ledger = output / "ranks" / "rank_00001.jsonl"
    ledger.write_text(ledger.read_text().replace('"rows": 4', '"rows": 3'))
    said = "\n".join(verify(output, TARGETS, proven={0, 2, 3}).problems)
    assert "shard 2: 3 rows and 0 rejects are not its 4 images" in said


def test_a_sample_is_some_of_what_was_written_and_small_outputs_are_read_whole(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = Store(output).snapshot().finished
    assert sample(finished) == {0, 2, 3}
    assert sample({}) == set()
    monkeypatch.setattr("lora_clip.output.verify.SAMPLE_BYTES", 1)
    drawn = [sample(finished) for _ in range(100)]
    assert all(len(one) == 1 for one in drawn)
    assert set().union(*drawn) == {0, 2, 3}
    read = verify(output, TARGETS, proven=finished.keys() - {2})
    assert (read.read, read.shards) == (1, 3)


def test_a_shard_of_another_width_than_the_proven_ones_is_found(output: Path) -> None:
    forge(output, "img_emb", 2, edit_rows(lambda rows: np.ascontiguousarray(rows[:, :-1])))
    assert "(4, 7) float16, (4, 8) float16 is expected" in "\n".join(verify(output, TARGETS, proven={0}).problems)
