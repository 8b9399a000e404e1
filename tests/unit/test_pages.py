"""Templates: whatever the data says, it stays text; pages load nothing, look alike, and are made in one place."""

from __future__ import annotations

import ast
import dataclasses
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest

import lora_clip
from helpers.images import jpeg
from helpers.jobs import PROJECT
from lora_clip.compare.page import ComparisonPage
from lora_clip.report import charts
from lora_clip.report.charts import Chart
from lora_clip.report.pages import TEMPLATES, WEB, environment, render
from lora_clip.report.run import RunPage
from lora_clip.search.page import SearchPage

SOURCES = Path(lora_clip.__file__).parent
HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)></style>{{ 7 * 7 }}"
PAGES = {"report.html": RunPage, "compare.html": ComparisonPage, "search.html": SearchPage}
COLOURS = set(re.findall(r"--[\w-]+", (WEB / "colours.css").read_text()))


def hostile(kind: Any) -> Any:
    """A value of a type, with hostile text wherever it has text: every field of every page, however deep."""
    if kind in (str, Any):
        return HOSTILE
    if kind is bytes:
        return jpeg()
    if kind in (int, float):
        return kind(1)
    if kind is Chart:
        return charts.scatter(HOSTILE, HOSTILE, np.ones((1, 2)), [charts.Picture(1, 1, 1, HOSTILE, HOSTILE)], (9, 9))
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        return kind(**{field.name: hostile(hints[field.name]) for field in dataclasses.fields(kind)})
    return _hostile_generic(get_origin(kind), get_args(kind))


def _hostile_generic(origin: Any, arguments: tuple[Any, ...]) -> Any:
    if origin is tuple:
        return tuple(hostile(argument) for argument in arguments)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return [hostile(arguments[0])] * 2
    return hostile(arguments[0])  # an optional value: the one that is there


class Reader(HTMLParser):
    """What a browser would make of a page: its elements, their attributes, and whether each is closed."""

    VOID = {"meta", "img", "br", "link", "input"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, Mapping[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"


@pytest.mark.parametrize(("template", "page"), PAGES.items(), ids=PAGES)
def test_hostile_values_in_every_field_stay_text(template: str, page: type) -> None:
    text = render(template, hostile(page))
    read = Reader(text)
    assert not read.open and "&lt;script&gt;" in text and "49" not in re.sub(r"base64,[^\"]*", "", text)
    assert {tag for tag, _ in read.elements} & {"script", "iframe", "link", "a", "form"} == set()
    for tag, attributes in read.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        if tag == "img":
            assert (attributes["src"] or "").startswith("data:image/jpeg;base64,")


@pytest.mark.parametrize(("template", "page"), PAGES.items(), ids=PAGES)
def test_every_page_has_the_shell_and_loads_nothing(template: str, page: type) -> None:
    text = render(template, hostile(page))
    read = Reader(text)
    policy = [seen["content"] for tag, seen in read.elements if seen.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert text.startswith("<!doctype html>") and '<html lang="en">' in text and "prefers-color-scheme: dark" in text
    assert all(seen.get("alt") is not None for tag, seen in read.elements if tag == "img")
    assert len(re.findall("<style", text)) == 1


@pytest.mark.parametrize(("template", "page"), PAGES.items(), ids=PAGES)
def test_what_is_not_there_is_left_out(template: str, page: type) -> None:
    full = hostile(page)
    for field in dataclasses.fields(page):
        if isinstance(getattr(full, field.name), list):
            assert not Reader(render(template, dataclasses.replace(full, **{field.name: []}))).open
        elif type(None) in get_args(get_type_hints(page)[field.name]):
            assert not Reader(render(template, dataclasses.replace(full, **{field.name: None}))).open


def test_a_field_that_a_template_misspells_is_an_error() -> None:
    with pytest.raises(Exception, match="no_such_field"):
        environment().from_string("{{ page.no_such_field }}").render(page=hostile(SearchPage))


def test_every_template_is_rendered_by_a_test() -> None:
    assert {path.name for path in TEMPLATES.iterdir()} == {*PAGES, "base.html", "pictures.html"}


def test_templates_and_styles_travel_in_the_wheel() -> None:
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]
    shipped = {path for form in settings["package-data"]["lora_clip"] for path in SOURCES.glob(form)}
    assert {*TEMPLATES.iterdir(), *WEB.iterdir()} <= shipped


def test_no_template_switches_escaping_off() -> None:
    assert environment().autoescape is True
    for path in TEMPLATES.iterdir():
        assert not re.search(r"\|\s*safe|autoescape", path.read_text()), path


def test_styles_use_the_shared_colours_and_no_others() -> None:
    for name in ("style.css", "charts.css", "search.css"):
        style = (WEB / name).read_text()
        assert set(re.findall(r"var\((--[\w-]+)\)", style)) <= COLOURS
        assert not re.search(r"(?<![\w&])#[0-9a-f]{3,8}\b", style), f"{name} has a colour of its own"


def test_light_and_dark_name_the_same_colours() -> None:
    light, dark = (WEB / "colours.css").read_text().split("@media")
    assert set(re.findall(r"(--[\w-]+): ", light)) - set(re.findall(r"(--[\w-]+): ", dark)) == set()


def test_the_live_page_has_the_shared_style() -> None:
    text = (WEB / "index.html").read_text()
    sheets = [seen["href"] for tag, seen in Reader(text).elements if seen.get("rel") == "stylesheet"]
    assert sheets == ["colours.css", "style.css", "search.css"]
    assert "style=" not in text and "<script>" not in text, "its policy allows neither"


def texts() -> Iterator[tuple[Path, str]]:
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield path, node.value


def test_html_and_svg_are_made_in_templates_and_charts_alone() -> None:
    tag = re.compile(r"</?(div|span|svg|p|h[1-6]|table|t[rdh]|ul|li|img|figure|section|style|html|rect|text)[ >/]")
    assert [(path.name, text) for path, text in texts() if tag.search(text)] == []
    assert [
        path.name for path in SOURCES.rglob("*.py") if re.search(r"html\.escape|import html", path.read_text())
    ] == []


def imports(package: str) -> set[str]:
    """The packages of ours that a package's modules import."""
    nodes = [node for path in (SOURCES / package).rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {module.split(".")[1] for module in modules if module.startswith("lora_clip.")}


def test_pages_are_imported_from_above_only() -> None:
    assert imports("report") & {"app", "search", "compare", "benchmark"} == set()
    assert "report" not in imports("diagnose") | imports("inspection") | imports("output")
