"""Where a base and an adapter are found, and what is said where they are not: folders and the hub, never a pickle."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id
from safetensors.torch import load_file, save_file

from helpers.models import edit_config, save_adapter, save_base
from lora_clip.errors import AdapterError, ModelError
from lora_clip.models.checkpoint import find_checkpoint
from lora_clip.models.digests import begin_digests, digests, file_digest, weights_digest

TITLE = "Adding `safetensors` variant of this model"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tmp_path / "base", layers=1, width=8)


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return save_adapter(tmp_path / "adapter", base)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(repo: str, **_: Any) -> str:
        validate_repo_id(repo)
        raise LocalEntryNotFoundError("Cannot find the requested files\nand a second line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)


class Bomb:
    """Raises when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return exec, ("raise SystemExit('a pickle was loaded')",)


def make_pickle(safetensors: Path, name: str) -> None:
    safetensors.unlink()
    (safetensors.parent / name).write_bytes(pickle.dumps(Bomb()))


def name_base(adapter: Path, name: Any) -> None:
    edit_config(adapter / "adapter_config.json", base_model_name_or_path=name)


def test_base_alone(base: Path) -> None:
    found = find_checkpoint(str(base), None)
    assert (found.base, found.base_folder, found.adapter, found.adapter_folder, found.note) == (
        *(str(base), base),
        *(None, None, None),
    )


def test_base_and_adapter(base: Path, adapter: Path) -> None:
    found = find_checkpoint(str(base), str(adapter))
    assert (found.base_folder, found.adapter_folder, found.note) == (base, adapter, None)


def test_home_is_understood(base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(base.parent))
    found = find_checkpoint("~/base", "~/adapter")
    assert (found.base_folder, found.adapter_folder) == (base, adapter)


@pytest.mark.parametrize("absolute", [True, False])
def test_base_is_the_adapters_own_where_none_is_given(base: Path, adapter: Path, absolute: bool) -> None:
    name_base(adapter, str(base) if absolute else "../base")
    assert find_checkpoint(None, str(adapter)).base_folder.resolve() == base


def test_relative_base_is_found_from_another_working_directory(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The working directory has a `base` beside it too: the adapter's own comes first."""
    name_base(adapter, "../base")
    save_base(tmp_path / "elsewhere" / "base", seed=5, layers=1, width=8)
    (tmp_path / "elsewhere" / "here").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere" / "here")
    assert find_checkpoint(None, str(adapter)).base_folder == base


@pytest.mark.parametrize("named", [..., None, ""])
def test_adapter_that_does_not_name_its_base(base: Path, adapter: Path, named: Any) -> None:
    name_base(adapter, named)
    with pytest.raises(AdapterError, match=r"does not say which base.*give model\.base="):
        find_checkpoint(None, str(adapter))
    assert find_checkpoint(str(base), str(adapter)).note is None


def test_nothing_given() -> None:
    with pytest.raises(ModelError, match=r"neither model\.base nor model\.adapter"):
        find_checkpoint(None, None)


@pytest.mark.parametrize("named", ["own folder", "../base"])
def test_base_with_other_weights_than_the_adapters_own_is_refused(
    base: Path, adapter: Path, tmp_path: Path, named: str
) -> None:
    name_base(adapter, str(base) if named == "own folder" else named)
    other = save_base(tmp_path / "other", seed=7, layers=1, width=8)
    with pytest.raises(AdapterError, match=r"was trained on .*base, and .*other has other weights"):
        find_checkpoint(str(other), str(adapter))


def test_copy_of_the_adapters_own_base_is_welcome(base: Path, adapter: Path, tmp_path: Path) -> None:
    copy = save_base(tmp_path / "copy", layers=1, width=8)
    assert find_checkpoint(str(copy), str(adapter)).note is None


def test_base_of_another_name_is_noted(base: Path, adapter: Path) -> None:
    name_base(adapter, "openai/clip-vit-base-patch32")
    note = find_checkpoint(str(base), str(adapter)).note
    assert note == f"the adapter names its base 'openai/clip-vit-base-patch32'; using {str(base)!r} as you say"


def test_own_base_that_cannot_be_compared_is_noted(base: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "pickled").mkdir()
    name_base(adapter, str(tmp_path / "pickled"))
    assert "names its base" in (find_checkpoint(str(base), str(adapter)).note or "")


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("named", ["/home/somebody/clip", "somebody/clip"])
def test_own_base_that_is_not_here(adapter: Path, named: str) -> None:
    name_base(adapter, named)
    with pytest.raises(ModelError, match=rf"adapter in .* names '{named}' as the base.*give model\.base="):
        find_checkpoint(None, str(adapter))


@pytest.mark.parametrize("text", ["not JSON", "[1]", "\xff"])
def test_adapter_config_that_is_not_json(base: Path, adapter: Path, text: str) -> None:
    (adapter / "adapter_config.json").write_text(text, encoding="latin-1")
    with pytest.raises(AdapterError, match=r"adapter_config\.json.*JSON"):
        find_checkpoint(str(base), str(adapter))


@pytest.mark.parametrize("named", [7, ["a"], {"a": 1}])
def test_base_that_is_named_by_no_string(base: Path, adapter: Path, named: Any) -> None:
    """PEFT on a module without a name, such as open_clip's, writes what it finds there."""
    name_base(adapter, named)
    assert find_checkpoint(str(base), str(adapter)).note is None
    with pytest.raises(AdapterError, match=r"does not say which base.*give model\.base="):
        find_checkpoint(None, str(adapter))


def test_adapter_that_is_a_file(base: Path, tmp_path: Path) -> None:
    """As CLIP-LoRA saves it."""
    (tmp_path / "lora_weights.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(AdapterError, match=r"(?s)is a file.*pickle.*weights_only=True"):
        find_checkpoint(str(base), str(tmp_path / "lora_weights.pt"))


def test_a_file_of_a_model_or_an_adapter_is_answered_with_its_folder(base: Path, adapter: Path) -> None:
    with pytest.raises(AdapterError, match=rf"is a file: give the folder that it lies in, {adapter}$"):
        find_checkpoint(str(base), str(adapter / "adapter_model.safetensors"))
    with pytest.raises(ModelError, match=rf"is a file: give the folder that it lies in, {base}$"):
        find_checkpoint(str(base / "model.safetensors"), None)


def test_a_folder_of_checkpoints_is_answered_with_the_latest(base: Path, adapter: Path, tmp_path: Path) -> None:
    for name in ("checkpoint-900", "checkpoint-1000"):
        shutil.copytree(adapter, tmp_path / "run" / name)
    with pytest.raises(
        AdapterError, match=r"below it: checkpoint-900, checkpoint-1000\. .*adapter=.*run/checkpoint-1000$"
    ):
        find_checkpoint(str(base), str(tmp_path / "run"))


def test_sum_of_adapters(base: Path, adapter: Path, tmp_path: Path) -> None:
    other = save_adapter(tmp_path / "other", base, seed=2)
    found = find_checkpoint(None, {str(adapter): 0.7, str(other): -1})
    assert found.base_folder == base and found.adapter == {str(adapter): 0.7, str(other): -1.0}
    assert [(part.folder, part.weight) for part in found.adapters] == [(adapter, 0.7), (other, -1.0)]


def test_sum_of_adapters_of_two_bases_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    foreign = save_base(tmp_path / "foreign", seed=7, layers=1, width=8)
    other = save_adapter(tmp_path / "other", foreign)
    with pytest.raises(AdapterError, match="other weights"):
        find_checkpoint(None, {str(adapter): 0.5, str(other): 0.5})


def test_fingerprint_of_one_adapter_is_what_it_was(base: Path, adapter: Path) -> None:
    assert digests(find_checkpoint(str(base), str(adapter))) == {
        "base": {"weights": weights_digest(base), "config": file_digest(base / "config.json")},
        "adapter": {
            "weights": file_digest(adapter / "adapter_model.safetensors"),
            "config": file_digest(adapter / "adapter_config.json"),
        },
    }
    assert digests(find_checkpoint(str(base), None))["adapter"] is None


def test_fingerprint_of_a_sum_names_all_and_their_weights(base: Path, adapter: Path, tmp_path: Path) -> None:
    other = save_adapter(tmp_path / "other", base, seed=2)

    def of(**weights: float) -> Any:
        places = {"a": str(adapter), "b": str(other)}
        return digests(find_checkpoint(str(base), {places[name]: weight for name, weight in weights.items()}))

    assert of(a=0.7, b=0.3) == of(b=0.3, a=0.7) != of(a=0.3, b=0.7)
    assert [one["weight"] for one in of(a=0.7)["adapter"]["sum"]] == [0.7]


def test_adapter_without_config(base: Path, adapter: Path) -> None:
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match=r"no adapter_config\.json.*found README\.md, adapter_model\.safetensors"):
        find_checkpoint(str(base), str(adapter))


def test_pickled_adapter_is_refused(base: Path, adapter: Path) -> None:
    make_pickle(adapter / "adapter_model.safetensors", "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"pickled weights are not loaded.*adapter_model\.bin"):
        find_checkpoint(str(base), str(adapter))


def test_pickled_base_is_refused(base: Path) -> None:
    make_pickle(base / "model.safetensors", "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickled weights are not loaded.*pytorch_model\.bin"):
        find_checkpoint(str(base), None)


def test_base_without_config(base: Path) -> None:
    (base / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        find_checkpoint(str(base), None)


def test_empty_base_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the folder is empty"):
        find_checkpoint(str(tmp_path), None)


def test_adapter_given_for_a_base(adapter: Path) -> None:
    with pytest.raises(ModelError, match=r"holds an adapter: give its folder as model\.adapter="):
        find_checkpoint(str(adapter), None)


def test_base_that_holds_an_adapter_too(base: Path, tmp_path: Path) -> None:
    """transformers would put that adapter onto the base, unasked."""
    save_adapter(base, base)
    with pytest.raises(ModelError, match=r"holds an adapter.*without adapter_config\.json"):
        find_checkpoint(str(base), None)


def test_digest_follows_every_weights_file(base: Path) -> None:
    before = weights_digest(base)
    save_file({"more": torch.ones(1)}, base / "model-2.safetensors")
    after = weights_digest(base)
    weights = load_file(base / "model.safetensors")
    weights["visual_projection.weight"][0, 0] += 1
    save_file(weights, base / "model.safetensors")
    assert len({before, after, weights_digest(base)}) == 3


def test_digests_that_were_begun_early_are_the_same_and_taken_once(base: Path, tmp_path: Path) -> None:
    checkpoint = find_checkpoint(str(base), str(save_adapter(tmp_path / "adapter", base)))
    save_file({"more": torch.ones(1)}, base / "model-2.safetensors")
    before = digests(checkpoint)
    begin_digests([checkpoint, checkpoint])
    assert digests(checkpoint) == before
    (base / "model-2.safetensors").write_bytes(b"")  # nobody reads it a second time
    assert digests(checkpoint) == before


def test_digest_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert file_digest(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


Folders = dict[tuple[str, str | None], Path]


class Hub:
    """A stand-in for the hub: folders by (repository, revision), and a repository's discussions."""

    def __init__(self, folders: Folders, discussions: list[SimpleNamespace]) -> None:
        self.folders, self.discussions, self.patterns = folders, discussions, set[str]()

    def snapshot_download(self, repo: str, *, allow_patterns: list[str], revision: str | None = None) -> str:
        self.patterns |= set(allow_patterns)
        return str(self.folders[repo, revision])

    def get_repo_discussions(self, repo: str, *, author: str) -> list[SimpleNamespace]:
        return [one for one in self.discussions if one.author == author]

    def install(self, monkeypatch: pytest.MonkeyPatch) -> Hub:
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)
        monkeypatch.setattr(huggingface_hub, "get_repo_discussions", self.get_repo_discussions)
        return self


def discussion(num: int, author: str = "SFconvertbot", title: str = TITLE, pull: bool = True) -> SimpleNamespace:
    return SimpleNamespace(num=num, author=author, title=title, is_pull_request=pull)


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    base = save_base(tmp_path / "pickled", layers=1, width=8)
    make_pickle(base / "model.safetensors", "pytorch_model.bin")
    return base


def test_hub_repositories(base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name_base(adapter, "somebody/clip")
    hub = Hub({("somebody/clip", None): base, ("somebody/lora", None): adapter}, []).install(monkeypatch)
    found = find_checkpoint(None, "somebody/lora")
    assert (found.base, found.base_folder, found.adapter_folder) == ("somebody/clip", base, adapter)
    assert not [pattern for pattern in hub.patterns if pattern.endswith((".bin", ".pt", ".py", "*"))]


def test_hub_conversion_to_safetensors(base: Path, pickled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [discussion(1, author="a-stranger"), discussion(2, title="Another"), discussion(3, pull=False)]
    folders = {("openai/clip", None): pickled, ("openai/clip", "refs/pr/19"): base}
    Hub(folders, [*others, discussion(19)]).install(monkeypatch)
    assert find_checkpoint("openai/clip", None).base_folder == base


def test_hub_repository_of_pickles_only(pickled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Hub({("openai/clip", None): pickled}, [discussion(1, author="a-stranger")]).install(monkeypatch)
    with pytest.raises(ModelError, match=r"openai/clip has no \.safetensors.*pickled weights are not loaded"):
        find_checkpoint("openai/clip", None)


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize(("base", "adapter"), [("openai/clip", None), (None, "somebody/lora")])
def test_hub_out_of_reach(base: str | None, adapter: str | None) -> None:
    key = "model.base=openai/clip" if base else "model.adapter=somebody/lora"
    with pytest.raises(ModelError, match=rf"{key}: no such folder, and the Hugging Face hub did not give it") as caught:
        find_checkpoint(base, adapter)
    assert "LocalEntryNotFoundError: Cannot find the requested files" in str(caught.value)
    assert "second line" not in str(caught.value)


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("name", ["/no/such/folder", "a b", "../x/y"])
def test_name_of_neither_folder_nor_repository(name: str) -> None:
    with pytest.raises(ModelError, match=r"no such folder, and no name of a hub repository"):
        find_checkpoint(name, None)


def test_a_part_of_open_clips_files_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"no config\.json.*open_clip_config\.json and .*are read"):
        find_checkpoint(str(tmp_path), None)


def test_open_clips_way_to_name_a_repository(base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_config(adapter / "adapter_config.json", base_model_name_or_path="hf-hub:somebody/clip")
    Hub({("somebody/clip", None): base, ("somebody/clip", "v1"): base}, []).install(monkeypatch)
    assert find_checkpoint("hf-hub:somebody/clip@v1", None).base_folder == base
    for name in ("hf-hub:somebody/clip", "somebody/clip", None):
        found = find_checkpoint(name, str(adapter))
        assert (found.base_folder, found.note) == (base, None)


def test_hub_revisions(base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders: Folders = {("somebody/clip", "v1"): base, ("somebody/lora", "step-100"): adapter}
    Hub(folders, []).install(monkeypatch)
    found = find_checkpoint("somebody/clip@v1", "somebody/lora@step-100")
    assert (found.base, found.base_folder, found.adapter_folder) == ("somebody/clip@v1", base, adapter)


def test_revision_of_the_base_that_an_adapter_names(base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_config(adapter / "adapter_config.json", base_model_name_or_path="somebody/clip", revision="v1")
    Hub({("somebody/clip", "v1"): base}, []).install(monkeypatch)
    assert find_checkpoint(None, str(adapter)).base == "somebody/clip@v1"


@pytest.mark.usefixtures("no_hub")
def test_folder_with_an_at_sign(base: Path, adapter: Path) -> None:
    folder = adapter.rename(adapter.with_name("lora@v2"))
    assert find_checkpoint(str(base), str(folder)).adapter_folder == folder


def test_conversion_does_not_stand_for_a_revision(pickled: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders: Folders = {("openai/clip", "v1"): pickled, ("openai/clip", "refs/pr/19"): base}
    Hub(folders, [discussion(19)]).install(monkeypatch)
    with pytest.raises(ModelError, match=r"openai/clip@v1 has no \.safetensors"):
        find_checkpoint("openai/clip@v1", None)
