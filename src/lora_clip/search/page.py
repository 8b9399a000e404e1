"""The contact sheet of a search: one HTML file with its pictures inside, for a screen, a phone, or a screen reader."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

from lora_clip.search.collection import Hit, Query

THUMBNAIL_PIXELS = 320
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; --line: #8885; --quiet: #767676; }
@media (prefers-color-scheme: dark) { :root { --quiet: #a0a0a0; } }
body { max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.2rem; font-weight: 400; color: var(--quiet); } h2 { margin: 2rem 0 .75rem; overflow-wrap: anywhere; }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(10rem, 44%), 1fr)); gap: .75rem; padding: 0; }
li { list-style: none; border: 1px solid var(--line); border-radius: .6rem; overflow: hidden; }
figure { margin: 0; } figcaption { padding: .5rem .75rem .75rem; overflow-wrap: anywhere; }
img, .none { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #8881; }
.none { display: grid; place-items: center; color: var(--quiet); }
.score { font-variant-numeric: tabular-nums; } small { display: block; color: var(--quiet); font-size: .8rem; }
"""


def contact_sheet(title: str, model: str, found: Sequence[tuple[Query, Sequence[Hit]]]) -> str:
    """The page of some queries with their hits, best first; everything that comes from the data is escaped."""
    sections = "".join(_section(query, hits) for query, hits in found)
    return document(title, STYLE, f"<main><h1>{html.escape(title)}: {html.escape(model)}</h1>{sections}</main>")


def document(title: str, style: str, body: str) -> str:
    """A whole HTML page that loads nothing and runs nothing."""
    return (
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{html.escape(title)}</title>"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name=viewport content="width=device-width, initial-scale=1"><style>{style}</style></head>'
        f"<body>{body}</body></html>\n"
    )


def describe(query: Query) -> str:
    """A query for people."""
    return str(query) if not isinstance(query, bytes) and not hasattr(query, "mode") else "an image"


def _section(query: Query, hits: Sequence[Hit]) -> str:
    figures = "".join(f"<li>{_figure(hit)}" for hit in hits)
    return f"<section><h2>{html.escape(describe(query))}</h2><ol>{figures}</ol></section>"


def _figure(hit: Hit) -> str:
    name = hit.caption or hit.key
    key = f"<small>{html.escape(hit.key)}</small>" if hit.caption else ""
    caption = f"{html.escape(name)} <span class=score>{hit.score:.3f}</span>{key}"
    return f"<figure>{picture(hit.thumbnail(THUMBNAIL_PIXELS), name)}<figcaption>{caption}</figcaption></figure>"


def picture(data: bytes | None, name: str) -> str:
    """An image element with its JPEG data inside, or what stands in its place."""
    if data is None:
        return "<span class=none>no picture</span>"
    return f'<img alt="{html.escape(name)}" src="data:image/jpeg;base64,{base64.b64encode(data).decode()}">'
