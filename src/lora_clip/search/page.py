"""The contact sheet of a search: one page with its pictures inside, for a screen, a phone, or a screen reader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_clip.report.pages import Thumbnail, render
from lora_clip.search.collection import Hit, Query

THUMBNAIL_PIXELS = 320


@dataclass(frozen=True)
class Found:
    """A query and what was found, best first."""

    query: str
    thumbnails: Sequence[Thumbnail]


@dataclass(frozen=True)
class SearchPage:
    """What search.html lays out."""

    title: str
    model: str
    found: Sequence[Found]


def contact_sheet(title: str, model: str, found: Sequence[tuple[Query, Sequence[Hit]]]) -> str:
    """The page of some queries with their hits, best first."""
    sections = [Found(describe(query), [thumbnail(hit, THUMBNAIL_PIXELS) for hit in hits]) for query, hits in found]
    return render("search.html", SearchPage(title, model, sections))


def describe(query: Query) -> str:
    """A query for people."""
    return str(query) if not isinstance(query, bytes) and not hasattr(query, "mode") else "an image"


def thumbnail(hit: Hit, pixels: int) -> Thumbnail:
    """A hit as a page shows it: called by its caption, or by its key where it has none."""
    return Thumbnail(hit.caption or hit.key, hit.thumbnail(pixels), hit.key if hit.caption else "", hit.score)
