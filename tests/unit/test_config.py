"""The schema is the contract, conf/ and the pages agree with it, and what is typed wrong is told with what to type."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from lora_clip import config as schema
from lora_clip.app import exits, mistakes, usage
from lora_clip.demo import DEMO
from lora_clip.errors import ConfigError
from lora_clip.sources.registry import SOURCES

PROJECT = Path(__file__).parents[2]
CONF = PROJECT / "conf"
DEFAULTS: dict[str, Any] = {
    "data.folder": None, "data.parquet": None, "data.hf": None, "data.list": None, "data.zip": None,
    "data.batch_size": "auto", "data.num_workers": "auto", "data.limit": None,
    "data.decode": "exact", "data.copies": "pinned", "data.decode_seconds": 120, "data.orientation": "ignore",
    "data.image_key": None, "data.stages": [],
    "model.base": None, "model.dtype": "auto", "model.compile": False, "output.dtype": "float16",
    "trainer.accelerator": "auto", "trainer.devices": "auto", "trainer.num_nodes": 1, "trainer.strategy": "auto",
    "trainer.profiler": None,
    "share": False, "share_seconds": 60,
    "embed": ["image"], "output_dir": "outputs", "resume": True, "logger": None, "index": False, "verify": "sample",
    "max_reject_fraction": 0.5,
    "data.shards": str(DEMO / "shards"), "model.adapter": str(DEMO / "adapter"),
}  # fmt: skip
"""What scripts and other people's sweeps rely on."""
GIVEN = {source.key: [f"data.{source.key}=/a"] for source in SOURCES.values()} | {"clip": ["model.adapter=/a"]}


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    schema.register()


def load(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("predict", list(overrides))


def refusal(*overrides: str) -> str:
    """What is said of overrides that do not do, from Hydra's first look to the check of the values."""
    try:
        mistakes.check_arguments(overrides)
        schema.check(load(*mistakes.with_own_model(overrides)))
    except Exception as error:
        return str(error) if isinstance(error, ConfigError) else mistakes.configuration_message(error) or repr(error)
    raise AssertionError(f"{overrides} are accepted")


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


# --- The schema and conf/ ----------------------------------------------------------------------------------------


def test_keys_and_defaults_are_those_of_the_contract() -> None:
    config = load()
    assert {key.name for key in schema.KEYS} == set(DEFAULTS)
    assert {name: schema.read(config, name) for name in DEFAULTS} == DEFAULTS


def test_only_the_schema_and_hydra_have_keys_at_the_top() -> None:
    assert set(load()) == {name.partition(".")[0] for name in DEFAULTS}


@pytest.mark.parametrize(
    ("data", "model", "debug"),
    list(itertools.product(choices("data"), choices("model"), [None, *choices("debug")])),
)
def test_every_config_composes_and_is_accepted(data: str, model: str, debug: str | None) -> None:
    given = [*GIVEN.get(data, []), *GIVEN.get(model, []), *([f"debug={debug}"] if debug else [])]
    schema.check(load(f"data={data}", f"model={model}", *given))


@pytest.mark.parametrize("logger", choices("logger"))
def test_every_logger_is_accepted_and_makes_an_object(logger: str) -> None:
    config = load(f"logger={logger}", "output_dir=/emb")
    schema.check(config)
    module, _, name = config.logger["_target_"].rpartition(".")
    assert hasattr(import_module(module), name) and "/emb/" in str(schema.read(config, "logger"))
    assert "give one of conf/logger/" in refusal("logger={a: 1}")


def test_the_options_of_each_group_are_the_files_of_conf() -> None:
    groups = {path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra"}
    assert {group: sorted(options) for group, options in schema.OPTIONS.items()} == {
        group: choices(group) for group in groups
    }


def test_every_source_has_its_key_and_its_option() -> None:
    keys = {source.key for source in SOURCES.values()}
    assert {f"data.{key}" for key in keys} <= {key.name for key in schema.KEYS} and keys <= set(schema.OPTIONS["data"])


def test_a_key_that_the_schema_lacks_is_refused_in_conf_too(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [schema, _self_]\ndata: {batchsize: 3}\n")
    with (
        initialize_config_dir(str(tmp_path), version_base="1.3"),
        pytest.raises(Exception, match="'batchsize' not in 'Data'"),
    ):
        compose("mine")


def test_the_sentences_say_what_the_code_does() -> None:
    from lora_clip.app.compilation import COMPILE_FROM
    from lora_clip.models.compute import BATCH_SIZES, DTYPES
    from lora_clip.pixels.decode import DECODINGS, GPU

    known = {key.name: key for key in schema.KEYS}
    assert {int(size) for size in re.findall(r"\d+", known["data.batch_size"].sentence)} == set(BATCH_SIZES.values())
    assert f"{COMPILE_FROM:,} images" in known["model.compile"].sentence
    accepted = {name: key.takes.accepts for name, key in known.items()}
    assert all(map(accepted["data.decode"], (*DECODINGS, GPU))) and all(map(accepted["model.dtype"], DTYPES))
    for name, words in {"data.decode": (*DECODINGS, GPU), "model.dtype": DTYPES}.items():
        assert all(word in known[name].takes.words for word in words)


def test_nothing_heavy_is_imported_for_the_schema() -> None:
    code = "import sys, lora_clip.app.exits; print(sorted({'torch', 'lightning', 'numpy', 'hydra'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- What a person reads -----------------------------------------------------------------------------------------


def test_the_page_is_the_one_that_the_schema_gives() -> None:
    assert (PROJECT / "docs/configuration.md").read_text() == usage.page(), f"type {usage.REGENERATE}"


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_shows_every_key_with_its_sentence(option: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(PROJECT / "predict.py"), "data=folder", option],
        cwd=tmp_path, capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "40"},
    )  # fmt: skip
    assert done.stdout == usage.help_text("python predict.py") and done.stderr == ""
    words = " ".join(done.stdout.split())
    assert all(f"{key.name} {key.default} {key.sentence}" in words for key in schema.KEYS)
    assert all(f"{group}={one}" in words for group, options in schema.OPTIONS.items() for one in options)


def test_help_fits_a_screen_of_100_columns() -> None:
    lines = usage.help_text("python predict.py").splitlines()
    assert max(map(len, lines)) <= usage.WIDTH and not [line for line in lines if line != line.rstrip()]


# --- What is typed wrong -----------------------------------------------------------------------------------------

ADAPTERS = "give a hub name or folder, a sum as in {a: 0.7, b: 0.3}, null, or a list of these"
REFUSED = {
    "data.batch_size=abc": "data.batch_size=abc: give a number of images, 1 or more, or auto",
    "data.batch_size=0": "data.batch_size=0: give a number of images, 1 or more, or auto",
    "data.batch_size=true": "data.batch_size=true: give a number of images, 1 or more, or auto",
    "data.batch_size=null": "data.batch_size=null: give a number of images, 1 or more, or auto",
    "data.num_workers=-1": "data.num_workers=-1: give a number of processes, 0 or more, or auto",
    "data.limit=0": "data.limit=0: give a number of images, 1 or more, or null for all",
    "data.limit=2.5": "data.limit=2.5: give a number of images, 1 or more, or null for all",
    "data.decode=quick": "data.decode=quick: give exact, fast or gpu",
    "data.image_key=[jpg,3]": "data.image_key=[jpg,3]: give an extension, a list of them, or null",
    "data.shards={a:1}": "data.shards={a:1}: give a path, a list of paths, or null",
    "data.orientation=upright": "data.orientation=upright: give ignore or exif",
    "data.stages=[keep]": "data.stages=[keep]: give a list of module:function",
    "data.stages=mine:keep": "data.stages=mine:keep: give a list of module:function",
    "model.adapter={a:x}": f"model.adapter={{a:x}}: {ADAPTERS}",
    "model.adapter={a:true}": f"model.adapter={{a:true}}: {ADAPTERS}",
    "model.adapter={a:nan}": f"model.adapter={{a:nan}}: {ADAPTERS}",
    "model.adapter={}": f"model.adapter={{}}: {ADAPTERS}",
    "model.adapter=[]": f"model.adapter=[]: {ADAPTERS}",
    "model.adapter=[a,3]": f"model.adapter=[a,3]: {ADAPTERS}",
    "model.compile=7": "model.compile=7: give auto, true or false",
    "model.dtype=float8": "model.dtype=float8: give auto, float32, bfloat16, float16, int8 or fp8",
    "embed=text": "embed=text: give image or [image,text] (texts alone, a file with one a line: lora-clip embed-text "
    "FILE)",
    "embed=[text]": "embed=[text]: give image or [image,text]",
    "embed=[image,image]": "embed=[image,image]: give image or [image,text]",
    "embed=null": "embed=null: give image or [image,text]",
    "output.dtype=int8": "output.dtype=int8: give float16 or float32",
    "output_dir=": "output_dir=: give a folder",
    "output_dir=2024_10_05": "output_dir=20241005: give a folder; a name that reads as a number in two "
    """pairs of quotes: 'output_dir="…"'""",
    "resume=perhaps": "resume=perhaps: give true or false",
    "max_reject_fraction=2": "max_reject_fraction=2: give a number from 0 to 1",
    "verify=all": "verify=all: give sample or full",
    "~trainer.devices": "trainer.devices is not given: type trainer.devices=…",
    "data.batchsize=3": "unknown key data.batchsize (did you mean data.batch_size?); --help shows all keys",
    "limit=3": "unknown key limit (did you mean data.limit?)",
    "dat=shards": "unknown key dat (did you mean data?)",
    "zebra=1": "unknown key zebra; --help shows all keys",
    "trainer.device=2": "unknown key trainer.device (did you mean trainer.devices?); other arguments",
    "trainer.nonsense=1": "unknown key trainer.nonsense; other arguments of Lightning's Trainer take a plus: +",
    "data=nothing": "data=nothing: give demo, folder, hf, list, parquet, shards or zip",
    "data=shard": "data=shard: give demo, folder, hf, list, parquet, shards or zip (did you mean shards?)",
    "data=null": "a group takes one of its names: data=demo|folder|hf|list|parquet|shards|zip; ",
    "output=/data/emb": "output is a group of keys (did you mean output_dir?)",
    "+debug=small": "debug has a place of its own: type it without the plus, debug=…",
    "data.limit": "data.limit has no value: type data.limit=…",
    "data.limt": "data.limt is not key=value (did you mean data.limit?)",
    "--output_dir": "--output_dir: keys are typed without dashes and with =: output_dir=…",
    "--batch-size=32": "--batch-size=32: keys are typed without dashes and with =: data.batch_size=…",
    "=3": "=3 has no key: type key=3",
    "data.batch_size=32,64": "data.batch_size=32,64 gives several values: for a sweep over them type -m as well; for "
    """one value with a comma in it: 'data.batch_size="32,64"'""",
    "data.shards=/a/{0..1}.tar": "bare braces are Hydra's own syntax",
    "data.shards=/a (1).tar": """data.shards=/a (1).tar cannot be read: put the value in two pairs of quotes: """
    """'data.shards="/a (1).tar"'""",
}  # fmt: skip


@pytest.mark.parametrize("typed", REFUSED)
def test_a_mistake_is_told_with_what_to_type(typed: str) -> None:
    assert refusal(typed).startswith(REFUSED[typed])
    assert "\n" not in refusal(typed)


@pytest.mark.parametrize(
    "typed",
    [
        "data.image_key=jpg", "data.image_key=[jpg,png]", "data.shards=[/a,/b]", "data.stages=[mine.stages:keep]",
        "data.batch_size=7", "data.num_workers=0", "max_reject_fraction=1", "max_reject_fraction=0",
        "model.compile=true", "model.compile=auto", 'output_dir="2024_10_05"',
        "trainer.devices=[0,1]", "+trainer.log_every_n_steps=3",
        "embed=image", "embed=[image]", "embed=[image,text]", "embed=[text,image]", "model.adapter=/a", "data=folder",
        "+data.of_my_source=3",
    ],
)  # fmt: skip
def test_what_a_key_takes_is_accepted(typed: str) -> None:
    schema.check(load(*mistakes.with_own_model([typed])))


def test_a_key_given_twice_is_refused() -> None:
    mistakes.check_arguments(["data.shards=/a", "data.limit=3", "hydra.run.dir=a", "hydra.run.dir=b", "-m"])
    with pytest.raises(ConfigError, match=r"data\.shards is given 3 times: the shell expanded the braces"):
        mistakes.check_arguments([f"data.shards=/data/{number}.tar" for number in range(3)])
    with pytest.raises(ConfigError, match=r"data\.limit is given 2 times: give it once$"):
        mistakes.check_arguments(["data.limit=1", "data.limit=2"])


# --- A model of one's own ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "base", "adapter"),
    [
        (["model.adapter=/y"], None, "/y"),
        (["model.base=/x", "model.adapter=/y"], "/x", "/y"),
        (["model.base=/x", "model.adapter=null"], "/x", None),
        (["++model.base=/x", "model.adapter=null"], "/x", None),
        (["model.dtype=float32"], None, str(DEMO / "adapter")),
        (["model=demo_base"], str(DEMO / "base"), None),
        (["model=demo_base", "model.adapter=/y"], str(DEMO / "base"), "/y"),
        (["model=clip", "model.adapter=/y"], None, "/y"),
        (["model.adapter={/m/a.v1: 0.7, org/b@main: -1}"], None, {"/m/a.v1": 0.7, "org/b@main": -1}),
    ],
)
def test_the_model_is_the_one_that_is_named(typed: list[str], base: str | None, adapter: Any) -> None:
    config = load(*mistakes.with_own_model(typed))
    schema.check(config)
    assert (config.model.base, config.model.adapter) == (base, adapter)


@pytest.mark.parametrize("typed", [["model.base=/x"], ["model=clip"], ["model=clip", "model.base=/x"]])
def test_a_base_alone_is_asked_for_its_adapter(typed: list[str]) -> None:
    message = refusal(*typed)
    assert message.startswith("model.adapter is not given: type model.adapter=… ") and "null: the base model" in message


def test_a_sweep_names_its_points_by_what_was_typed() -> None:
    typed = [["data.batch_size=3", "model.adapter=/y"], ["data.batch_size=4", "model.adapter=/y"]]
    assert mistakes.without_own_model([mistakes.with_own_model(point) for point in typed]) == typed
    chosen = [["model=clip", "model.adapter=/y"], ["model=demo_base", "model.adapter=/y"]]
    assert mistakes.without_own_model(chosen) == chosen


# --- Other ends --------------------------------------------------------------------------------------------------


def test_memory_errors_are_told_from_others() -> None:
    assert exits.is_out_of_memory(MemoryError())
    assert exits.is_out_of_memory(
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    )
    assert exits.is_out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not exits.is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_several_adapters_are_a_list_and_several_bases_are_not() -> None:
    schema.check(load("model.adapter=[/a,/b,null]"))
    with pytest.raises(ConfigError, match=r"model\.base=\[/a\]: give one hub name or folder, or null$"):
        schema.check(load("model.base=[/a]"))
