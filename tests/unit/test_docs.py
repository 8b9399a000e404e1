"""What the docs say is so: links lead somewhere, quoted messages are the program's own, the site builds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PAGES = sorted([*PROJECT.glob("*.md"), *(PROJECT / "docs").glob("*.md")])
MESSAGES = re.findall(r"^\| `([^`]+)`", (PROJECT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:\s]+)\)")


def program_text() -> str:
    """All string literals' text, with adjacent ones joined as Python joins them and white space folded."""
    text = "\n".join(path.read_text() for path in (PROJECT / "src").rglob("*.py"))
    return re.sub(r"\"\s*\n\s*f?r?\"", "", text)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_in_troubleshooting_is_one_that_the_program_says(message: str) -> None:
    assert message in program_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    gone = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not gone


def test_the_readme_is_short() -> None:
    assert len((PROJECT / "README.md").read_text().splitlines()) < 150


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "Architecture" in (tmp_path / "site" / "index.html").read_text()
