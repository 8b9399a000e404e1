"""report.html: what a person looks at first. Self-contained, and everything that comes from the data is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lora_clip.observe.gallery import gallery, pick
from lora_clip.output.manifest import read_manifest
from lora_clip.output.store import Store, write_text
from lora_clip.pictures import Pictures

SHOWN_ABOVE = ("verdict", "by_rank", "images_by_rank")
STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 1rem; padding: 0; }
.figures li { list-style: none; border: 1px solid #8884; border-radius: .5rem; padding: .75rem 1rem; }
.figures b { display: block; font-size: 1.6rem; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .25rem 1rem .25rem 0; vertical-align: top; }
.gallery td { padding: .15rem; text-align: center; font-size: .8rem; }
.gallery td:first-child { padding-right: 1.2rem; }
.gallery img { width: 112px; height: 112px; object-fit: contain; border-radius: .3rem; }
.bar { background: #4a7fd4; height: .8rem; border-radius: .2rem; min-width: 2px; } code { overflow-wrap: anywhere; }
"""


def write_report(root: Path) -> None:
    """Write the page for the latest run into the output directory, with pictures from the input."""
    from lora_clip.observe.summary import reasons

    manifest = read_manifest(root)
    assert manifest is not None, "the report follows the manifest"
    pictures = Pictures.of(root)
    shown = gallery(pick(Store(root), sorted(pictures.shards)), pictures)
    write_text(root / "report.html", page(root.name, manifest, reasons(root).most_common(), shown))


def page(name: str, manifest: dict[str, Any], rejects: Iterable[tuple[str, int]], pictures: str = "") -> str:
    """The page as HTML."""
    from lora_clip.observe.summary import describe_model

    sections = [
        f"<h1>{html.escape(name)}</h1><p>{html.escape(describe_model(manifest))}</p>",
        _figures(manifest),
        f"<p>{html.escape(manifest['run']['verdict'])}</p>",
        pictures,
        _ranks(manifest["run"]["by_rank"]),
        _table("Rejected, by reason", ((reason, f"{count:,}") for reason, count in rejects)),
        _table("Run", ((key, value) for key, value in _flatten(manifest["run"]) if key not in SHOWN_ABOVE)),
        _table("Fingerprint", _flatten(manifest["fingerprint"])),
        _table("Versions", manifest["versions"].items()),
    ]
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{html.escape(name)}</title>"
    body = "".join(sections)
    return f"<!doctype html><html lang=en><head>{head}<style>{STYLE}</style></head><body>{body}</body></html>\n"


def _figures(manifest: dict[str, Any]) -> str:
    run = manifest["run"]
    figures = [
        (f"{manifest['rows']:,}", f"embeddings of width {manifest['width']}"),
        (f"{manifest['rejects']:,}", "images rejected"),
        (f"{manifest['shards']:,}", "shards"),
        (f"{run['images_per_second'] or 0:,.0f}", "images/s in the latest run"),
        (f"{(run['waiting_share'] or 0):.0%}", "of the time waiting for data"),
    ]
    return f"<ul class=figures>{''.join(f'<li><b>{value}</b>{label}</li>' for value, label in figures)}</ul>"


def _ranks(ranks: list[dict[str, Any]]) -> str:
    from lora_clip.observe.summary import rank_table

    if not ranks:
        return ""
    most = max(rank["images"] for rank in ranks) or 1
    header, *rows = ("".join(f"<td>{cell}" for cell in row) for row in rank_table(ranks))
    bars = (f"<td style='width:40%'><div class=bar style='width:{100 * rank['images'] / most:.0f}%'>" for rank in ranks)
    body = "".join(f"<tr>{row}{bar}</div>" for row, bar in zip(rows, bars, strict=True))
    return f"<h2>Ranks</h2><table style='width:100%'><tr>{header}<td>{body}</table>"


def _table(title: str, rows: Iterable[tuple[Any, Any]]) -> str:
    body = "".join(f"<tr><td>{html.escape(str(key))}<td><code>{html.escape(str(value))}</code>" for key, value in rows)
    return f"<h2>{title}</h2><table>{body}</table>" if body else ""


def _flatten(value: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _flatten(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item
