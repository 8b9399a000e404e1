"""Every shipped config composes, its keys are the contract's, and what is typed wrong is answered with what to type."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from lora_clip.app import exits
from lora_clip.errors import ConfigError

CONF = Path(__file__).parents[2] / "conf"
CONTRACT = """
    data.shards data.folder data.batch_size data.num_workers data.limit data.image_key model.base model.adapter
    model.dtype model.compile output.dtype output_dir resume max_reject_fraction trainer.devices
""".split()  # noqa: SIM905


@pytest.fixture(autouse=True, scope="module")
def resolver() -> None:
    exits.register_resolver()


def load(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("predict", list(overrides))


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize(("data", "debug"), list(itertools.product(choices("data"), [None, *choices("debug")])))
def test_every_config_composes(data: str, debug: str | None) -> None:
    given = {"shards": ["data.shards=/a"], "folder": ["data.folder=/a"]}.get(data, [])
    config = load(f"data={data}", *given, *([f"debug={debug}"] if debug else []))
    assert all(OmegaConf.select(config, key, default="absent") != "absent" for key in CONTRACT)


def test_the_default_is_the_embedded_demo() -> None:
    config = load()
    assert Path(config.data.shards).is_dir() and Path(config.model.adapter).is_dir()
    assert config.resume is True and config.output.dtype == "float16"


def test_every_knob_has_a_sentence() -> None:
    for path in CONF.glob("*/*.yaml"):
        text = path.read_text().splitlines()
        if text[0].startswith("#"):
            continue
        keys = [line for line in text if ": " in line and not line.startswith((" ", "-", "_", "defaults"))]
        assert all("#" in key or "???" in key for key in keys), path


def test_known_keys_are_those_of_the_contract() -> None:
    assert set(CONTRACT) <= set(exits.known_keys())


def test_a_key_given_twice_is_refused() -> None:
    exits.check_arguments(["data.shards=/a", "data.limit=3", "hydra.run.dir=a", "hydra.run.dir=b", "-m"])
    with pytest.raises(ConfigError, match=r"data\.shards is given 3 times: the shell expanded the braces"):
        exits.check_arguments([f"data.shards=/data/{number}.tar" for number in range(3)])
    with pytest.raises(ConfigError, match=r"data\.limit is given 2 times: give it once$"):
        exits.check_arguments(["data.limit=1", "data.limit=2"])


def test_memory_errors_are_told_from_others() -> None:
    assert exits.is_out_of_memory(MemoryError())
    assert exits.is_out_of_memory(
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    )
    assert exits.is_out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not exits.is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
