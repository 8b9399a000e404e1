"""The files that start the job on clusters: they parse, name only keys that there are, and the page tells of each."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from lora_clip.config import KEYS, OPTIONS

PROJECT = Path(__file__).parents[2]
FILES = sorted((PROJECT / "examples/clusters").iterdir())
PAGE = (PROJECT / "docs/clusters.md").read_text()
ASSIGNED = re.compile(r"(?<![\w.\-$])((?:data|model|trainer|output|logger)(?:\.\w+)?|output_dir|index|resume|share)=")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_names_keys_that_there_are_and_the_page_tells_of_it(path: Path) -> None:
    named = set(ASSIGNED.findall(path.read_text()))
    assert "output_dir" in named and named <= {*(key.name for key in KEYS), *OPTIONS}
    assert f"(../examples/clusters/{path.name})" in PAGE
    assert "How far it was tried: docs/clusters.md" in path.read_text()


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".yaml"], ids=lambda path: path.name)
def test_yaml_parses(path: Path) -> None:
    assert all(isinstance(one, dict) for one in yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.suffix in (".sh", ".sbatch")], ids=lambda path: path.name
)
def test_a_shell_reads_the_scripts(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_python_reads_the_script() -> None:
    path = PROJECT / "examples/clusters/ray_train.py"
    compile(path.read_text(), str(path), "exec")
