"""The search page, in a real server, asked as a browser asks and by a real browser."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.images import encode, jpeg, photo, write_tar
from helpers.jobs import COMMAND, PATIENCE, environment, new_folder, nursery, uninterrupted
from lora_clip.errors import OutputError
from lora_clip.search import open_output
from lora_clip.search.server import open_outputs

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = '<img src=x onerror="document.title=1">'


@pytest.fixture(scope="module")
def outputs() -> Path:
    """A folder of three outputs: with the adapter, without it, and of untrusted pictures."""
    folder = new_folder()
    shutil.copytree(uninterrupted("index=true"), folder / "adapted")
    shutil.copytree(uninterrupted("model=demo_base"), folder / "base")
    tar = write_tar(folder / "0.tar", {"a<b>.png": encode(photo(20, 20), "PNG"), "a<b>.txt": HOSTILE.encode()})
    nursery().predict("data=shards", f"data.shards={tar}", f"output_dir={folder / 'hostile'}").expect(0)
    return folder


@pytest.fixture(scope="module")
def address(outputs: Path) -> Iterator[str]:
    line = [*COMMAND, "serve", str(outputs), "--port", "0"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=environment()) as server:
        assert server.stdout is not None
        said = server.stdout.readline()
        assert said.startswith("search page: http://localhost:")
        yield said.split()[2]
        server.terminate()
        server.wait(PATIENCE)


def ask(url: str, body: bytes | None = None, **headers: str) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=PATIENCE) as answer:
        data = answer.read()
        return json.loads(data) if answer.headers["Content-Type"] == "application/json" else data


def refused(url: str, body: bytes | None = None, **headers: str) -> int:
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(url, body, **headers)
    caught.value.close()
    return caught.value.code


def find(output: str, **values: object) -> str:
    return urllib.parse.urlencode({"output": output, **values})


def test_a_text_an_image_and_a_hit_are_searched_for(address: str, outputs: Path) -> None:
    hits = ask(f"{address}api/search?{find('adapted', query='a red apple', k=5)}")
    assert hits[0]["caption"] == "red apple" and len(hits) == 5
    picture = ask(f"{address}api/picture?{find('adapted', shard=hits[0]['shard'], row=hits[0]['row'])}")
    assert picture[:2] == b"\xff\xd8"
    collection = open_output(outputs / "adapted")
    stored = collection.pictures.sample(hits[0]["shard"], collection.search("a red apple")[0].position).image
    assert ask(f"{address}api/search?{find('adapted')}", stored)[0]["caption"] == "red apple"
    like = ask(f"{address}api/like?{find('adapted', shard=hits[0]['shard'], row=hits[0]['row'])}")
    assert len(like) == 24 and "red apple" not in [hit["caption"] for hit in like]


def test_base_and_adapter_answer_each_for_itself(address: str) -> None:
    found = {output["name"]: output["kind"] for output in ask(f"{address}api/outputs")}
    assert found == {"adapted": "adapter", "base": "base", "hostile": "adapter"}
    first = {
        name: ask(f"{address}api/search?{find(name, query='a red apple')}")[0]["caption"]
        for name in ("adapted", "base")
    }
    assert first["adapted"] == "red apple" != first["base"]


def test_what_is_wrong_is_refused(address: str) -> None:
    assert refused(f"{address}api/search?{find('nobody', query='a')}") == 404
    assert refused(f"{address}api/search?{find('adapted', query='')}") == 422
    assert refused(f"{address}api/search?{find('adapted', query='a', k=100000)}") == 422
    assert refused(f"{address}api/search?{find('adapted')}", b"no image") == 400
    assert refused(f"{address}api/search?{find('adapted')}", jpeg()[:40]) == 400
    assert refused(f"{address}api/like?{find('adapted', shard=0, row=99999)}") == 400
    assert refused(f"{address}api/picture?{find('adapted', shard=-1, row=0)}") == 404
    assert refused(f"{address}../server.py") == 404 and refused(f"{address}%2e%2e/server.py") == 404


def test_only_this_machine_is_answered_and_nothing_else_may_run(address: str) -> None:
    assert refused(address, Host="evil.example") == 400
    with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert "<script>" not in answer.read().decode()


def browse(url: str) -> str:
    """The page as a browser shows it, once everything is there."""
    line = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=20000",
        "--dump-dom",
        url,
    ]
    return subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_a_browser_shows_hits_a_switch_and_nothing_that_the_data_brought(address: str) -> None:
    page = browse(f"{address}#{find('adapted', text='a red apple')}")
    assert page.count('aria-label="more like') == 24 and "24 nearest: a red apple" in page
    assert page.count('type="radio"') == 3 and 'alt="red apple"' in page
    page = browse(f"{address}#{find('hostile', shard=0, row=0, name=HOSTILE)}")
    assert "&lt;img src=x" in page and "<img src=x" not in page and "<title>Search</title>" in page
    page = browse(f"{address}#{find('hostile', text='a')}")
    assert page.count('aria-label="more like') == 1 and "<img src=x" not in page


def test_outputs_of_one_name_are_told_apart(outputs: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(outputs / "base", tmp_path / "base"))
    assert set(open_outputs([outputs / "base", other])) == {str(outputs / "base"), str(other)}
    with pytest.raises(OutputError, match=r"no fingerprint\.json"):
        open_outputs([tmp_path / "nothing"])
