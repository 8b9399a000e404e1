"""the walk: every file once, under one name, the same for whoever walks, whatever is linked to what."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_clip.errors import DataError
from lora_clip.io.addresses import identities
from lora_clip.pack.pack import list_images
from lora_clip.sources.base import Shard
from lora_clip.sources.expand import expand
from lora_clip.sources.folder import FolderSource
from lora_clip.sources.tar import TarSource
from lora_clip.sources.walk import walk

FOLDERS = ["a", "b", "a/c", "b/a", "a/c/d"]
links = st.dictionaries(
    st.tuples(st.sampled_from(["", *FOLDERS]), st.sampled_from("lmz")),
    st.sampled_from(["", *FOLDERS, "a/0.jpg", "gone", "../outside"]),
    max_size=6,
)


def names(root: Path) -> list[str]:
    return [entry.path for entry in walk(root)]


def fill(root: Path, *files: str) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


@contextmanager
def listed_backwards() -> Iterator[None]:
    """A file system that lists its folders in another order."""
    real = os.scandir

    @contextmanager
    def backwards(folder: str) -> Iterator[list[os.DirEntry[str]]]:
        with real(folder) as entries:
            yield sorted(entries, key=lambda entry: entry.name, reverse=True)

    with patch.object(os, "scandir", backwards):
        yield


def test_linked_folders_are_followed_once_and_always_under_the_same_name(tmp_path: Path) -> None:
    root = fill(tmp_path / "tree", "real/a.jpg", "z/b.jpg")
    (root / "alias").symlink_to("real")
    (root / "real" / "up").symlink_to("..")
    assert names(root) == ["alias/a.jpg", "z/b.jpg"]
    with listed_backwards():
        assert names(root) == ["alias/a.jpg", "z/b.jpg"]
    further: list[tuple[str, bool]] = []
    list(walk(root, lambda path, loop: further.append((path, loop))))
    assert further == [("alias/up", True), ("real", False)]


@settings(max_examples=80, deadline=None)
@given(links)
def test_a_folder_and_its_packing_see_the_same_images_of_any_tree(made: dict[tuple[str, str], str]) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = fill(Path(place) / "tree", *(f"{folder}/{n}.jpg" for folder in FOLDERS for n in range(2)))
        fill(Path(place) / "outside", "o.jpg")
        for (folder, name), target in made.items():
            (root / folder / f"{name}.jpg").symlink_to(root / target)
        images = [name for shard in FolderSource(str(root)).shards([]) for name in shard.state["files"]]
        packed = [member.path for sample in list_images(root, root / "none").samples for member in sample]
        assert packed == [name for name in images if (root / name).exists()]
        real = Counter(os.path.realpath(root / name) for name in packed if not (root / name).is_symlink())
        assert set(real.values()) == {1} and len(real) == 10 + ("../outside" in made.values())
        found = names(root)
        with listed_backwards():
            assert names(root) == found


@settings(max_examples=40, deadline=None)
@given(links)
def test_a_path_is_known_by_its_real_path_however_it_is_spelt(made: dict[tuple[str, str], str]) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = fill(Path(place) / "tree", *(f"{folder}/0.jpg" for folder in FOLDERS))
        for (folder, name), target in made.items():
            (root / folder / name).symlink_to(root / target)
        ends = ("", "/", "/0.jpg", "/l/0.jpg", "/z", "//0.jpg", "/./0.jpg", "/..", "/l/../0.jpg")
        spelt = [f"{root}/{folder}{end}" for folder in ("", *FOLDERS, "l", "a/m", "gone/x") for end in ends]
        with chdir(root):
            spelt += ["a", "a/0.jpg", "./a/0.jpg", "../tree/a/0.jpg", "l/0.jpg", "", ".", "/", "/a", "//a", "/0.jpg"]
            expected = [(path, os.path.realpath(path)) for path in spelt]
            assert list(identities([*spelt, "s3://b/k.tar"])) == [*expected, ("s3://b/k.tar", "s3://b/k.tar")]


def test_tars_in_linked_folders_are_found_and_a_known_tar_stays_the_same_shard(tmp_path: Path) -> None:
    root = fill(tmp_path / "tree", "real/0.tar", "deep/er/1.TAR")
    fill(tmp_path / "outside", "1.tar")
    os.mkfifo(root / "pipe.tar")
    (known,) = TarSource(str(root)).shards([])
    (root / "alias").symlink_to("real")
    (root / "x").symlink_to("../outside")
    (root / "gone.tar").symlink_to("nowhere")
    assert expand(str(root)) == [str(root / name) for name in ("alias/0.tar", "gone.tar", "x/1.tar")]
    (root / "gone.tar").unlink()
    assert [(s.id, s.path) for s in TarSource(str(root)).shards([known])] == [
        (0, f"{root}/real/0.tar"),
        (1, f"{root}/x/1.tar"),
    ]
    assert isinstance(known, Shard)


def test_a_folder_that_cannot_be_read_is_an_error_and_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot list '.*gone': No such file"):
        names(tmp_path / "gone")
