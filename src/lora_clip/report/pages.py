"""Pages from templates: the one place where HTML is made, and where everything that comes from the data is escaped."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES, WEB = (Path(__file__).parent / name for name in ("templates", "web"))
"""`WEB` is what the live search page loads from its server; pages that stand alone carry its style sheets inside."""


class Page(Protocol):
    """What a template is filled with; base.html asks for the title."""

    @property
    def title(self) -> str:
        """What the browser's tab says."""


@dataclass(frozen=True)
class Thumbnail:
    """A picture on a page: its name, its JPEG data (None: not to be had), and what a template may show below it.

    `key` is empty where the name is the key; `score` is a cosine.
    """

    name: str
    jpeg: bytes | None
    key: str = ""
    score: float | None = None


def render(template: str, page: Page) -> str:
    """A page that loads nothing and runs nothing, with all its pictures inside."""
    return environment().get_template(template).render(page=page)


@cache
def environment() -> Environment:
    """The templates, with what they say about numbers and pictures."""
    made = Environment(
        loader=FileSystemLoader([TEMPLATES, WEB]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"count": "{:,}".format, "percent": "{:.0%}".format, "data_uri": data_uri}
    return made


def data_uri(jpeg: bytes) -> str:
    """A JPEG file as an address that holds it."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
