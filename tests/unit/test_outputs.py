"""Where the embeddings of several adapters go, and which models make them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from helpers.models import edit_config, save_adapter, save_base
from lora_clip.app.outputs import find_outputs, names_of, shared_spec
from lora_clip.errors import ConfigError, ModelError, OutputError
from lora_clip.output.provenance import write_fingerprint


@pytest.mark.parametrize(
    ("adapters", "names"),
    [
        (["/m/step-1000", "/m/step-2000", None], ["step-1000", "step-2000", "base"]),
        (["org/lora", "other/lora", "other/more"], ["org-lora", "other-lora", "more"]),
        (["/r/1/final/", "/r/2/final", "/q/2/final"], ["1-final", "r-2-final", "q-2-final"]),
        (["/m/base", None], ["m-base", "base"]),
        ([{"/m/a": 0.7, "/m/b": 0.3}, "/m/c", None], ["a-0.7+b-0.3", "c", "base"]),
        ([{"/m/b": -1, "/m/a": 2}, {"/m/a": 2}, "/m/a"], ["a-2+b--1", "a-2", "a"]),
        ([{"/r/1/final": 0.5, "/r/2/final": 0.5}, "/r/1/final"], ["1-final-0.5+2-final-0.5", "final"]),
        ([{"/r/x": 0.5}, {"/q/x": 0.5}], ["r-x-0.5", "q-x-0.5"]),
    ],
)
def test_outputs_are_named_after_their_adapters(adapters: list[Any], names: list[str]) -> None:
    assert names_of(adapters) == names


@pytest.mark.parametrize(
    "adapters", [["org/lora", "org/lora"], ["/m/a", "/m/a/"], [None, None], [{"a": 1, "b": 2}, {"b": 2, "a": 1}]]
)
def test_one_adapter_twice_is_refused(adapters: list[Any]) -> None:
    with pytest.raises(ConfigError, match="one and the same: give each once"):
        names_of(adapters)


def test_a_folder_named_by_way_of_another_has_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lora" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "lora" / "inner")
    assert names_of([".", ".."]) == ["inner", "lora"]


def config(root: Path, base: Path | None, *adapters: Path | None) -> DictConfig:
    """As much of the configuration as is looked at."""
    named = [adapter and str(adapter) for adapter in adapters]
    return OmegaConf.create({"output_dir": str(root), "model": {"base": base and str(base), "adapter": named}})


def test_null_is_the_base_of_the_others(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapters = [save_adapter(tmp_path / name, base) for name in ("a", "b")]
    found = find_outputs(config(tmp_path / "out", None, None, *adapters))
    assert [one.name for one in found] == ["base", "a", "b"] and found[1].root == tmp_path / "out" / "a"
    assert {one.checkpoint.base_folder for one in found} == {base} and found[0].checkpoint.adapter is None
    assert not (tmp_path / "out").exists()


def test_a_sum_among_others_is_an_output_of_its_own(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    one, other = (str(save_adapter(tmp_path / name, base)) for name in ("a", "b"))
    given = OmegaConf.create(
        {"output_dir": str(tmp_path / "out"), "model": {"base": None, "adapter": [{one: 0.7, other: 0.3}, one, None]}}
    )
    found = find_outputs(given)
    assert [output.name for output in found] == ["a-0.7+b-0.3", "a", "base"]
    assert [output.checkpoint.is_sum for output in found] == [True, False, False]
    assert {output.checkpoint.base_folder for output in found} == {base}


def test_bases_that_cannot_share_pixels_are_refused(tmp_path: Path) -> None:
    bases = [save_base(tmp_path / name) for name in ("one", "two")]
    adapters = [save_adapter(tmp_path / f"on-{base.name}", base) for base in bases]
    assert shared_spec(find_outputs(config(tmp_path / "out", None, *adapters)), "ignore")
    with pytest.raises(ModelError, match=r"several bases .*null needs model\.base"):
        find_outputs(config(tmp_path / "out", None, *adapters, None))
    edit_config(bases[1] / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5])
    with pytest.raises(ModelError, match="cannot share one pass: run the job once for each"):
        shared_spec(find_outputs(config(tmp_path / "out", None, *adapters)), "ignore")


def test_outputs_do_not_go_into_an_output(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    (tmp_path / "out").mkdir()
    write_fingerprint(tmp_path / "out", {"base": "x"})
    with pytest.raises(OutputError, match="is an output itself"):
        find_outputs(config(tmp_path / "out", base, None))
