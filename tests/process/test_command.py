"""`lora-clip` and `python -m lora_clip`: help, statuses, what is printed to be typed next, and life without extras."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.jobs import COMMAND, PROJECT, Meeting, environment, lora_clip, new_folder, nursery, uninterrupted
from lora_clip import __version__
from lora_clip.app.command import COMMANDS
from lora_clip.search.index import read_record
from lora_clip.terminal import command

WITHOUT_EXTRA = """
import sys
for name in ("faiss", "fastapi", "uvicorn"):
    sys.modules[name] = None
from lora_clip.app.command import main
sys.exit(main())
"""


def without_extra(*words: object) -> subprocess.CompletedProcess[str]:
    """A sub-command where the extra `search` is not installed."""
    line = [sys.executable, "-c", WITHOUT_EXTRA, *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, env=environment(), cwd=new_folder(), check=False)


def test_help_names_every_command_and_waits_for_nothing_heavy() -> None:
    said = lora_clip("--help").stdout
    assert all(f"{name} " in said and sentence in said for name, sentence in COMMANDS.items())
    assert lora_clip("--version").stdout == f"lora-clip {__version__}\n"
    code = "import sys; from lora_clip.app.command import build_parser, COMMANDS\n"
    code += "print([build_parser(name).prog for name in COMMANDS if name != 'embed'] and 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "embed"])
def test_each_command_explains_itself(name: str) -> None:
    done = lora_clip(name, "--help")
    assert done.returncode == 0 and COMMANDS[name] in done.stdout and f"usage: lora-clip {name}" in done.stdout


def test_what_cannot_be_run_is_one_message_and_status_2(tmp_path: Path) -> None:
    assert lora_clip().returncode == 2
    assert "invalid choice: 'serach'" in lora_clip("serach").stderr
    for words in (
        ("verify", tmp_path),
        ("search", tmp_path, "x"),
        ("compare", tmp_path, tmp_path),
        ("index", tmp_path),
    ):
        done = lora_clip(*words)
        assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith(f"error: {tmp_path} ")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [("--help",), ("completion",), ("search", "--help")])
def test_nobody_reads_any_more_and_the_command_ends_quietly(words: tuple[str, ...], unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    variables = {**environment(), "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run([*COMMAND, *words], stdout=writer, stderr=subprocess.PIPE, text=True, env=variables)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_embed_hands_its_arguments_to_hydra(tmp_path: Path) -> None:
    said = lora_clip("embed", "--cfg", "job", "data.limit=3", folder=tmp_path)
    assert said.returncode == 0 and "limit: 3" in said.stdout
    assert lora_clip("embed", "--help", folder=tmp_path).returncode == 0
    typo = lora_clip("embed", "data.limmit=3", folder=tmp_path)
    assert typo.returncode == 2 and "did you mean data.limit" in typo.stderr
    assert not list(tmp_path.iterdir())


def test_predict_py_is_embed(tmp_path: Path) -> None:
    both = [
        subprocess.run([*line, "--cfg", "job"], capture_output=True, text=True, cwd=tmp_path, env=environment()).stdout
        for line in ([sys.executable, str(PROJECT / "predict.py")], [*COMMAND, "embed"])
    ]
    assert both[0] == both[1] != ""


@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_further_ranks_run_the_same_command(launcher: str, tmp_path: Path) -> None:
    variables = environment(**Meeting(2, tmp_path).variables)
    typed = ["embed", "trainer.accelerator=cpu", "data.batch_size=4", "data.limit=20", Meeting.TYPED]
    line = [*COMMAND, *typed, "trainer.devices=2"]
    if launcher == "torchrun":
        line = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            *COMMAND[1:],
            *typed,
        ]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=variables)
    assert done.returncode == 0, done.stderr
    assert "on 2 ranks" in done.stdout and "verified: 20 images" in done.stdout
    assert len(list((tmp_path / "outputs" / "ranks").iterdir())) == 2


def test_what_a_job_prints_is_typed_from_another_folder(tmp_path: Path) -> None:
    here = tmp_path / "a folder"
    here.mkdir()
    done = nursery().predict("data.limit=20", "output_dir='my output'", folder=here).expect(0)
    lines = dict(line.split(":", 1) for line in done.stdout.splitlines() if line.startswith(("prove:", "search:")))
    for line in lines.values():
        typed = subprocess.run(line, shell=True, capture_output=True, text=True, cwd="/", env=environment())
        assert typed.returncode == 0, typed.stderr
    assert (here / "my output" / "search.html").exists()


def test_a_command_is_named_as_this_installation_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python, script = tmp_path / "bin" / "python", tmp_path / "bin" / "lora-clip"
    script.parent.mkdir()
    monkeypatch.setattr("sys.executable", str(python))
    assert shlex.split(command("verify", "a b")) == [str(python), "-m", "lora_clip", "verify", "a b"]
    script.touch(0o755)
    assert command("verify", "out") == f"{script} verify out", "not the one that another folder of the PATH holds"
    monkeypatch.setenv("PATH", str(script.parent))
    assert command("verify", "out") == "lora-clip verify out"


def complete(line: str, program: Path) -> list[str]:
    """What the printed completion offers in bash, where `lora-clip` is this program."""
    asked = f'eval "$({program} completion)"; COMP_LINE=$1 COMP_POINT=${{#1}}; _lora_clip; echo "${{COMPREPLY[*]}}"'
    folder = f"{program.parent}:{environment()['PATH']}"
    typed = ["bash", "-c", asked, "bash", line]
    return subprocess.run(typed, capture_output=True, text=True, env=environment(PATH=folder)).stdout.split()


def test_a_shell_completes_commands_options_and_keys(tmp_path: Path) -> None:
    program = tmp_path / "lora-clip"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
    program.chmod(0o755)
    assert complete("lora-clip se", program) == ["search", "serve"]
    assert complete("lora-clip search --ba", program) == ["--base"]
    assert complete("lora-clip embed data.num", program) == ["data.num_workers="]
    assert complete("lora-clip embed data.limit=3 data=sh", program) == ["shards"]


# --- Without the extra `search` ----------------------------------------------------------------------------------


def test_an_output_is_searched_verified_and_compared_without_the_extra() -> None:
    adapted, base = uninterrupted("index=true"), uninterrupted("model=demo_base")
    assert read_record(adapted) is not None, "an index is there, and cannot be read"
    page = new_folder() / "page.html"
    found = without_extra("search", adapted, "a red apple", "--k", 1, "--output", page)
    assert found.returncode == 0 and "red apple" in found.stdout.splitlines()[1], found.stderr
    assert without_extra("verify", adapted).returncode == 0
    compared = without_extra("compare", base, adapted, "--output", page)
    assert compared.returncode == 0, compared.stderr


@pytest.mark.parametrize(
    ("words", "lacking"),
    [(("serve",), "fastapi and uvicorn are"), (("index",), "faiss is"), (("embed", "index=true"), "faiss is")],
)
def test_what_needs_the_extra_says_so_at_once(words: tuple[str, ...], lacking: str) -> None:
    where = () if words[0] == "embed" else (uninterrupted(),)
    done = without_extra(*words, *where)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"error: {lacking} not installed: type {sys.executable} -m pip install 'lora-clip[search]'\n"
