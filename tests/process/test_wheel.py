"""The wheel, away from the checkout: it embeds the demo, verifies, searches and serves, from an empty folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest

from helpers.jobs import PROJECT, environment

pytestmark = pytest.mark.slow
SOURCES = ("src", "conf", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "predict.py")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, so that the checkout stays as it is and nothing of an older build comes in."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (PROJECT / name).is_dir():
            shutil.copytree(PROJECT / name, folder / "copy" / name, ignore=shutil.ignore_patterns("*.egg-info"))
        else:
            shutil.copy(PROJECT / name, folder / "copy" / name)
    line = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    done = subprocess.run(line, cwd=folder / "copy", capture_output=True, text=True, env=bare())
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`lora-clip` in a new environment of the wheel and of what it depends on, without the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    site = Path(
        subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        ).strip()
    )
    (folder / "packages").mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith(("__editable__", "lora_clip", "pip", "setuptools", "__pycache__")):
            (folder / "packages" / path.name).symlink_to(path)
    (site / "packages.pth").write_text(str(folder / "packages"))
    line = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", str(wheel)]
    subprocess.run(line, check=True, env=bare())
    return python.with_name("lora-clip")


def bare(**more: str) -> dict[str, str]:
    """A user's environment, in which nothing leads to the checkout."""
    return {key: value for key, value in environment(**more).items() if key != "PYTHONPATH"}


def run(program: Path, folder: Path, *words: object) -> str:
    done = subprocess.run(
        [program, *map(str, words)], cwd=folder, capture_output=True, text=True, env=bare(), timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_modules_the_configuration_and_the_demo(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(PROJECT / "src")) for path in (PROJECT / "src").rglob("*.py")}
    assert modules <= names
    assert {f"lora_clip/{path.relative_to(PROJECT)}" for path in (PROJECT / "conf").rglob("*.yaml")} <= names
    others = {path for path in (PROJECT / "src" / "lora_clip").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert {str(path.relative_to(PROJECT / "src")) for path in others} <= names


def test_the_wheel_embeds_verifies_searches_and_serves(program: Path, tmp_path: Path) -> None:
    code = "import lora_clip; print(lora_clip.__file__)"
    where = run(program.with_name("python"), tmp_path, "-c", code).strip()
    assert Path(where).is_relative_to(program.parents[1]), "the wheel's package, not that of the checkout"
    said = run(program, tmp_path, "embed", "data.limit=20", "index=true")
    assert "verified: 20 images" in said and f"prove:    {program} verify " in said
    assert run(program, tmp_path, "verify", "outputs").startswith("sound: 20 images")
    assert json.loads(run(program, tmp_path, "search", "outputs", "a red apple", "--json"))[0]["hits"]
    assert run(program, tmp_path, "embed", "-m", "data.limit=20", "data.batch_size=8", "output_dir=sweep").count("done")
    serve(program, tmp_path)


def serve(program: Path, folder: Path) -> None:
    line = [str(program), "serve", "outputs", "--port", "0"]
    with subprocess.Popen(line, cwd=folder, stdout=subprocess.PIPE, text=True, env=bare()) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[2]
        try:
            with urllib.request.urlopen(
                f"{address}api/search?output=outputs&query=a+red+apple&k=3", timeout=60
            ) as answer:
                assert len(json.load(answer)) == 3
            with urllib.request.urlopen(address, timeout=60) as page:
                assert b"<html" in page.read()
        finally:
            server.terminate()
    assert server.returncode in (0, -15)
