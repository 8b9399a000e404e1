"""The model in code: what is exported, what comes out of images and texts of every kind, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lora_clip
from helpers.images import encode, jpeg, photo, png
from helpers.models import save_adapter, save_base
from lora_clip import load_embedder, open_output
from lora_clip.api import InCodeEmbedder
from lora_clip.demo import DEMO
from lora_clip.errors import AdapterError, ConfigError, DataError, ModelError
from lora_clip.search.query import QueryEncoder


@pytest.fixture(scope="module")
def embedder() -> InCodeEmbedder:
    return load_embedder(DEMO / "base", DEMO / "adapter", device="cpu", dtype="float32", batch_size=20)


def test_what_is_exported_is_there_and_waits_for_nothing_heavy() -> None:
    assert lora_clip.__all__ == ["__version__", "load_embedder", "open_output"]
    assert set(lora_clip.__all__) <= set(dir(lora_clip))
    assert all(getattr(lora_clip, name) for name in lora_clip.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'load_model'"):
        lora_clip.load_model  # noqa: B018
    code = "import sys, lora_clip; print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
    assert open_output.__module__ == "lora_clip.search.collection"


def test_a_path_its_bytes_and_its_picture_are_one_image(embedder: InCodeEmbedder, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(png(70, 50, seed=1))
    found_ND = embedder.embed_images([str(file), file, file.read_bytes(), Image.open(file)])
    assert found_ND.shape == (4, embedder.width) and found_ND.dtype == np.float32
    assert np.abs(np.linalg.norm(found_ND, axis=1) - 1).max() < 1e-6
    assert all(np.array_equal(found_ND[0], row_D) for row_D in found_ND)


def test_order_is_kept_and_a_row_does_not_depend_on_how_many_there_are(embedder: InCodeEmbedder) -> None:
    """20 images a batch, which a CPU takes 16 and 4 at a time: 45 are two batches and 5 images."""
    pictures = [jpeg(40 + number, 60, seed=number) for number in range(45)]
    all_ND = embedder.embed_images(iter(pictures))
    assert len(np.unique(all_ND, axis=0)) == 45
    for count in (1, 17, 21, 44):
        assert np.array_equal(embedder.embed_images(pictures[:count]), all_ND[:count])
    assert np.abs(embedder.embed_images(pictures[::-1])[::-1] - all_ND).max() < 1e-6


def test_one_item_is_one_vector_and_none_are_none(embedder: InCodeEmbedder) -> None:
    assert embedder.embed_images(photo(30, 40)).shape == (embedder.width,)
    assert embedder.embed_texts("a red apple").shape == (embedder.width,)
    assert embedder.embed_images([]).shape == embedder.embed_texts([]).shape == (0, embedder.width)
    assert embedder.embed_images([jpeg()]).shape == (1, embedder.width)


def test_tensors_are_given_where_they_are_asked_for(embedder: InCodeEmbedder) -> None:
    images_ND = embedder.embed_images([jpeg(), png()], convert_to_tensor=True)
    texts_ND = embedder.embed_texts(["a", "b"], convert_to_tensor=True)
    assert isinstance(images_ND, torch.Tensor) and images_ND.device == texts_ND.device == embedder.device
    assert np.array_equal(images_ND.numpy(), embedder.embed_images([jpeg(), png()]))
    assert (images_ND @ texts_ND.T).shape == (2, 2)


def test_it_is_the_encoder_of_searches(embedder: InCodeEmbedder) -> None:
    queries = QueryEncoder(embedder.embedder, "exact")
    texts = [f"a picture of number {number}" for number in range(300)]
    assert np.abs(embedder.embed_texts(iter(texts)) - queries.text(texts)).max() < 1e-6
    assert np.abs(embedder.embed_images(jpeg(90, 64)) - queries.image(jpeg(90, 64))).max() < 1e-6


def test_an_image_that_cannot_be_read_is_named(embedder: InCodeEmbedder, tmp_path: Path) -> None:
    gone = tmp_path / "gone.jpg"
    with pytest.raises(DataError, match=r"image 25 \(.*gone.jpg\) cannot be read: .*No such file"):
        embedder.embed_images([*[jpeg()] * 25, gone, b""])
    with pytest.raises(DataError, match=r"image 0 \(bytes\) cannot be read: empty file"):
        embedder.embed_images(b"")
    found_ND = embedder.embed_images([jpeg(seed=1), gone, jpeg(seed=2)], on_error="nan")
    assert np.isnan(found_ND).all(axis=1).tolist() == [False, True, False]
    assert np.allclose(found_ND[[0, 2]], embedder.embed_images([jpeg(seed=1), jpeg(seed=2)]), atol=1e-6)


def test_a_collection_is_not_held_in_memory(embedder: InCodeEmbedder) -> None:
    """An iterator is asked for a few batches more than are embedded, and no further after an error."""
    asked = 0

    def endless() -> Iterator[bytes]:
        nonlocal asked
        while True:
            asked += 1
            yield b"" if asked == 21 else jpeg()

    with pytest.raises(DataError, match="image 20 "):
        embedder.embed_images(endless())
    assert asked <= 5 * embedder.batch_size


def test_a_bar_counts_on_standard_error(embedder: InCodeEmbedder, capfd: pytest.CaptureFixture[str]) -> None:
    embedder.embed_images([jpeg()] * 3)
    assert capfd.readouterr() == ("", "")
    embedder.embed_images([jpeg()] * 3, show_progress_bar=True)
    assert "3/3" in capfd.readouterr().err


def test_a_wrong_adapter_is_never_silent(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    other = save_base(tmp_path / "other", width=48)
    adapter = save_adapter(tmp_path / "adapter", base)
    alone, adapted = (load_embedder(base, given, device="cpu", dtype="float32") for given in (None, adapter))
    assert alone.embed_images(jpeg()) @ adapted.embed_images(jpeg()) < 0.9999
    with pytest.raises(AdapterError, match="has other weights"):
        load_embedder(other, adapter, device="cpu")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device": "cuda:77"}, "device=cuda:77 cannot be used here"),
        ({"device": "nonsense"}, "device=nonsense cannot be used here"),
        ({"dtype": "int3"}, "int3"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"decode": "quick"}, "decode=quick: exact, fast are known"),
        ({"orientation": "up"}, "orientation=up: ignore, exif are known"),
    ],
)
def test_what_is_not_known_is_said(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_embedder(DEMO / "base", **given)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="neither"):
        load_embedder()


def test_photographs_are_turned_upright_where_that_is_asked_for() -> None:
    exif, picture = Image.Exif(), photo(60, 40)
    exif[0x0112] = 6
    on_its_side = encode(picture, "PNG", exif=exif)
    embedders = [
        load_embedder(DEMO / "base", device="cpu", dtype="float32", orientation=orientation)
        for orientation in ("ignore", "exif")
    ]
    as_it_lies, turned = (embedder.embed_images(on_its_side) for embedder in embedders)
    upright = embedders[0].embed_images(picture.transpose(Image.Transpose.ROTATE_270))
    assert np.allclose(turned, upright, atol=1e-6) and not np.allclose(as_it_lies, turned, atol=1e-3)


def test_adapters_are_added_up(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    names = [str(save_adapter(tmp_path / name, base, seed=seed)) for seed, name in enumerate("ab")]
    one, summed = (
        load_embedder(base, given, device="cpu", dtype="float32")
        for given in (names[0], {names[0]: 0.7, names[1]: 0.3})
    )
    assert one.embed_images(jpeg()) @ summed.embed_images(jpeg()) < 0.9999


def test_dtype_is_torchs_own_too() -> None:
    halved = load_embedder(DEMO / "base", device="cpu", dtype=torch.bfloat16)
    whole = load_embedder(DEMO / "base", device="cpu", dtype="float32")
    cosine = halved.embed_images(jpeg()) @ whole.embed_images(jpeg())
    assert 0.999 < cosine < 1 - 1e-9 and "bfloat16 on cpu" in repr(halved)
