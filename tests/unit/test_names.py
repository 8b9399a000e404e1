"""names: what a file's name says of it."""

from __future__ import annotations

import pytest

from lora_clip.errors import ConfigError
from lora_clip.sources.base import open_source, parse_image_key
from lora_clip.sources.names import extra_name, image_name, webdataset_extension


@pytest.mark.parametrize(
    ("path", "key", "extension"),
    [
        ("a.jpg", "a", "jpg"),
        ("dir/a.v2.jpg", "dir/a.v2", "v2.jpg"),
        ("d.ir/a.JPEG", "d.ir/a", "jpeg"),
        ("000.seg.png", "000.seg", "seg.png"),
        ("../../etc/x.webp", "../../etc/x", "webp"),
        ("/abs/x.tif", "/abs/x", "tif"),
        (".jpg", "", "jpg"),
        ("a..png", "a.", ".png"),
        ("über\udcff.gif", "über\udcff", "gif"),
    ],
)
def test_a_key_is_the_path_less_the_image_extension(path: str, key: str, extension: str) -> None:
    assert image_name(path) == (key, extension)


@pytest.mark.parametrize("path", ["", "a", "jpg", "a.txt", "a.jpg.txt", "a.jpg/b", "a.cls", "a.npy", "x.jpgx"])
def test_what_does_not_end_in_an_image_extension_is_no_image(path: str) -> None:
    assert image_name(path) is None


@pytest.mark.parametrize(
    ("image_key", "path", "key"),
    [
        ("jpg", "d/000.jpg", "d/000"),
        ("jpg", "d/000.JPG", "d/000"),
        ("jpg", "d/000.seg.jpg", None),
        ("jpg", "d/000.png", None),
        ("jpg;png", "000.png", "000"),
        ("jpg; .PNG", "000.png", "000"),
        ("seg.png", "000.seg.png", "000"),
        ("seg.png", "000.png", None),
        ("img", "000.img", "000"),
        (["jpg", "png"], "000.png", "000"),
    ],
)
def test_an_image_key_takes_only_its_webdataset_extension(image_key: object, path: str, key: str | None) -> None:
    found = image_name(path, parse_image_key(image_key))
    assert (found and found.key) == key


@pytest.mark.parametrize(
    ("path", "expected"),
    [("d/a.v2.txt", ("d/a.v2", "txt")), ("a.JSON", ("a", "json")), ("a.txt.jpg", None), ("txt", None), ("a.cls", None)],
)
def test_captions_and_metadata_carry_the_key_of_their_image(path: str, expected: tuple[str, str] | None) -> None:
    assert extra_name(path) == expected


def test_the_webdataset_extension_starts_at_the_first_dot_of_the_file_name() -> None:
    assert webdataset_extension("a.b/c.D.Png") == "d.png"


@pytest.mark.parametrize("image_key", ["", ";", "jpg;;png", ["jpg", ""]])
def test_an_image_key_without_an_extension_is_refused(image_key: object) -> None:
    with pytest.raises(ConfigError, match="image_key"):
        parse_image_key(image_key)


def test_exactly_one_of_shards_and_folder_must_be_set() -> None:
    with pytest.raises(ConfigError, match=r"none of data\.shards, data\.folder, .* are set: type data=shards "):
        open_source({"shards": None, "folder": None})
    with pytest.raises(ConfigError, match="both"):
        open_source({"shards": "a", "folder": "b"})
