"""What a user can get wrong: one clear message, no stack trace, an exit status, and nothing left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.images import write_tar
from helpers.jobs import Outcome, everything, new_folder, nursery, predict, snapshot, uninterrupted, write_shard


@pytest.fixture
def place() -> Path:
    """A folder to type commands in: `shards/` holds two tars, `empty/` nothing, `none.tar` no image."""
    folder = new_folder()
    (folder / "empty").mkdir()
    write_shard(folder / "shards/00000.tar", 2)
    write_shard(folder / "shards/00001.tar", 2, seed=1)
    write_tar(folder / "none.tar", {"readme.md": b"nothing"})
    (folder / "file").write_text("a file")
    return folder


def message_of(outcome: Outcome) -> str:
    """The one message of a job that did not start; fails if there is more on the screen, or less."""
    assert outcome.status == 2, (outcome.status, outcome.stdout, outcome.stderr)
    assert outcome.stdout == ""
    assert outcome.stderr.startswith("error: "), outcome.stderr
    for noise in ("Traceback", "Warning", "\nerror", "HYDRA_FULL_ERROR", "search path", "hydra.errors", "omegaconf."):
        assert noise not in outcome.stderr, outcome.stderr
    assert outcome.stderr.count("\n") <= 12, outcome.stderr
    return outcome.stderr


MISTAKES = {
    "no such path": (["data=shards", "data.shards=nowhere"], ["data.shards=", "nowhere"]),
    "no such tar": (["data=shards", "data.shards=shards/9.tar"], ["no such file", "shards/9.tar"]),
    "a folder without tars": (
        ["data=shards", "data.shards=empty"],
        ["without a .tar", "data=folder data.folder=empty"],
    ),
    "a glob without match": (["data=shards", "data.shards=shards/*.tgz"], ["matches no file", "shards/*.tgz"]),
    "bare braces": (["data=shards", "data.shards=shards/{00000..00001}.tar"], ["quotes", "braces"]),
    "braces that the shell expanded": (
        ["data=shards", "data.shards=shards/00000.tar", "data.shards=shards/00001.tar"],
        ["2 times", "shell", "quotes"],
    ),
    "a misspelt key": (["data.batchsize=3"], ["data.batchsize", "data.batch_size"]),
    "an unknown group": (["data=nothing"], ["nothing", "folder", "shards"]),
    "a key alone": (["data.limit"], ["data.limit"]),
    "shards not named": (["data=shards"], ["data.shards"]),
    "folder not named": (["data=folder"], ["data.folder"]),
    "no such folder": (["data=folder", "data.folder=nowhere"], ["no such folder", "nowhere"]),
    "a folder without images": (["data=folder", "data.folder=empty"], ["no image", "empty"]),
    "shards and folder": (["data.folder=shards", "data.shards=shards"], ["both", "data.shards", "data.folder"]),
    "a pipe": (["data=shards", "data.shards='pipe:touch harm'"], ["pipe:", "not allowed"]),
    "a remote tar": (["data=shards", "data.shards=s3://bucket/0.tar"], ["s3://bucket/0.tar", "credentials"]),
    "no image": (["data=shards", "data.shards=none.tar"], ["no image", "none.tar"]),
    "no such adapter": (["model.adapter=nowhere"], ["nowhere", "adapter"]),
    "a folder that is no adapter": (["model.adapter=shards"], ["adapter_config.json"]),
    "no such base": (["model.base=./nowhere", "model.adapter=null"], ["nowhere"]),
    "a bad dtype": (["model.dtype=float8"], ["float8", "bfloat16"]),
    "a bad output dtype": (["output.dtype=int8"], ["int8", "float16"]),
    "a bad limit": (["data.limit=0"], ["data.limit=0", "1 or more"]),
    "a limit in words": (["data.limit=many"], ["data.limit", "many"]),
    "a bad batch size": (["data.batch_size=0"], ["data.batch_size=0"]),
    "a batch size in words": (["data.batch_size=big"], ["data.batch_size", "big"]),
    "no batch size": (["data.batch_size=null"], ["data.batch_size"]),
    "a bad way of decoding": (["data.decode=quick"], ["data.decode=quick", "exact, fast or gpu"]),
    "workers in words": (["data.num_workers=many"], ["data.num_workers=many", "auto"]),
    "a bad number of workers": (["data.num_workers=-1"], ["data.num_workers=-1"]),
    "a bad fraction": (["max_reject_fraction=2"], ["max_reject_fraction=2"]),
    "a base alone": (["model.base=shards"], ["model.adapter is not given", "null: the base model alone"]),
    "one adapter twice": (["model.adapter=[a,a/]"], ["a and a/ are one and the same", "give each once"]),
    "a list with no such adapter": (["model.adapter=[null,nowhere]"], ["nowhere", "adapter"]),
    "a number for a flag": (["model.compile=7"], ["model.compile=7", "true or false"]),
    "several values without -m": (["data.batch_size=32,64"], ["data.batch_size=32,64", "-m"]),
    "a deleted key": (["~trainer.devices"], ["trainer.devices is not given"]),
    "a bad accelerator": (["trainer.accelerator=abacus"], ["abacus"]),
    "a bad number of devices": (["trainer.devices=0"], ["devices"]),
    "an unknown trainer argument": (["+trainer.nonsense=1"], ["nonsense"]),
    "a bad resume": (["resume=perhaps"], ["resume", "perhaps"]),
    "an output that is a file": (["output_dir=file"], ["output_dir=file", "is a file"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_message_and_leaves_nothing(mistake: str, place: Path) -> None:
    overrides, words = MISTAKES[mistake]
    given = [override for override in overrides if override.startswith("output_dir=")]
    before = everything(place)
    outcome = nursery().predict(*overrides, *([] if given else ["output_dir=out/put"]), folder=place)
    message = message_of(outcome)
    assert not [word for word in words if word not in message], message
    assert everything(place) == before


def test_a_mistake_under_several_ranks_is_said_once(place: Path) -> None:
    before = everything(place)
    outcome = nursery().predict("model.adapter=nowhere", "output_dir=out", ranks=2, folder=place)
    message_of(outcome)
    assert everything(place) == before


def test_a_rank_that_finds_the_mistake_first_leaves_the_word_to_rank_0() -> None:
    script = """
import os, sys, time
from lora_clip.app import exits
from lora_clip.errors import ConfigError
exits.SECONDS_FOR_RANK_0 = 600  # however slow the machine
rank = os.fork() and "1"  # the parent is rank 1, and finds the mistake a second before rank 0, its child, does
os.environ["RANK"] = rank or "0"
def predict():
    if not rank: time.sleep(1)
    raise ConfigError("give more")
sys.argv = ["predict.py"]
exits.main(predict)
"""
    started = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    assert started.stderr is not None
    assert started.stderr.readline() == "error: give more\n" and started.poll() is None, "rank 1 is still there"
    started.terminate()
    assert started.wait() == 2 and started.stderr.read() == ""
    started.stderr.close()


def test_a_mistake_with_devices_is_said_once_and_ends_all(place: Path) -> None:
    before = everything(place)
    outcome = predict("data=shards", "data.shards=none.tar", "output_dir=out", ranks=2, folder=place)
    assert "no image" in message_of(outcome)
    assert everything(place) == before


def test_a_mistake_costs_an_existing_output_folder_nothing(place: Path) -> None:
    (place / "out").mkdir()
    (place / "out/mine.txt").write_text("keep")
    before = everything(place)
    message_of(nursery().predict("model.adapter=nowhere", "output_dir=out", folder=place))
    message_of(nursery().predict(f"model.adapter={harmless_adapter()}", "output_dir=out", folder=place))
    assert everything(place) == before
    nursery().predict("data.limit=2", "output_dir=out", folder=place).expect(0)


def harmless_adapter() -> Path:
    """An adapter whose files are in order and that changes nothing: noticed when the model is loaded."""
    from safetensors.numpy import load_file, save_file

    from lora_clip.demo import DEMO

    folder = new_folder()
    config = json.loads((DEMO / "adapter/adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(DEMO / "base")}))
    weights = load_file(DEMO / "adapter/adapter_model.safetensors")
    save_file({name: np.zeros_like(weight) for name, weight in weights.items()}, folder / "adapter_model.safetensors")
    return folder


def test_an_adapter_that_does_not_do_is_refused_and_leaves_nothing(place: Path) -> None:
    before = everything(place)
    message = message_of(nursery().predict(f"model.adapter={harmless_adapter()}", "output_dir=out", folder=place))
    assert "changes nothing" in message
    assert everything(place) == before


@pytest.mark.parametrize(
    ("overrides", "differences"),
    [
        (["output.dtype=float32"], ["output_dtype", "float16", "float32"]),
        (["model.dtype=float16"], ["model_dtype", "float16"]),
        (["model.adapter=null", "model.base={base}"], ["adapter"]),
        (["data.image_key=jpg"], ["image_key"]),
    ],
)
def test_an_output_of_another_kind_is_refused(overrides: list[str], differences: list[str]) -> None:
    from lora_clip.demo import DEMO

    output = uninterrupted("data.limit=60")
    before, names = snapshot(output), everything(output)
    typed = [override.format(base=DEMO / "base") for override in overrides]
    message = message_of(nursery().predict(f"output_dir={output}", *typed))
    assert not [word for word in (*differences, "output_dir", "resume=false") if word not in message], message
    assert snapshot(output) == before and everything(output) == names


def test_files_of_others_are_refused() -> None:
    output = new_folder()
    (output / "img_emb").mkdir()
    (output / "img_emb/img_emb_0.npy").write_bytes(b"of clip-retrieval")
    for resume in ("true", "false"):
        message = message_of(nursery().predict(f"output_dir={output}", f"resume={resume}"))
        assert "did not write" in message
    assert everything(output) == ["img_emb", "img_emb/img_emb_0.npy"]


def test_a_mistake_in_one_point_of_a_sweep_is_said_before_the_first_runs(place: Path) -> None:
    before = everything(place)
    message = message_of(nursery().predict("-m", "data.limit=2,0", "output_dir=out", folder=place))
    assert message.startswith("error: data.limit=0: give a number of images")
    assert everything(place) == before
