"""report.html: what a person looks at first. Self-contained, and everything that comes from the data is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lora_clip.inspection.pictures import Pictures
from lora_clip.io.atomic import write_text
from lora_clip.output.manifest import read_manifest
from lora_clip.output.rows import Rows
from lora_clip.report.gallery import gallery, pick
from lora_clip.report.history import read_timelines, stages, timeline
from lora_clip.report.map import embedding_map
from lora_clip.report.rejected import collect, section

SHOWN_ABOVE = ("verdict", "by_rank", "images_by_rank")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; --ground: #fff; --quiet: #666; --line: #8884;
  --r0: #1f5fbf; --r1: #a8500f; --r2: #1a7a4c; --r3: #8a3ab0; --r4: #b01e50; --r5: #0d7c8c; --r6: #6b6b00; --r7: #555; }
@media (prefers-color-scheme: dark) { :root { --ground: #16181c; --quiet: #a4a4a4;
  --r0: #7fb0ff; --r1: #f0a060; --r2: #6fd3a0; --r3: #cf9af0; --r4: #ff8fb0; --r5: #6fd0e0; --r6: #d6d260; --r7: #bbb;
} }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; background: var(--ground); overflow-wrap: anywhere; }
h2 { margin-top: 2.5rem; } .wide { overflow-x: auto; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 1rem; padding: 0; }
.figures li { list-style: none; border: 1px solid var(--line); border-radius: .5rem; padding: .75rem 1rem; }
.figures b { display: block; font-size: 1.6rem; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .25rem 1rem .25rem 0; vertical-align: top; }
th { font-weight: 600; } th[scope=row] { font-weight: 400; }
.gallery td { padding: .15rem; text-align: center; font-size: .8rem; }
.gallery td:first-child { padding-right: 1.2rem; }
.gallery img { width: 112px; height: 112px; object-fit: contain; border-radius: .3rem; }
.bar { background: var(--r0); height: .8rem; border-radius: .2rem; min-width: 2px; }
svg { display: block; width: 100%; height: auto; font: 13px system-ui, sans-serif; } svg text { fill: currentColor; }
svg .faint { fill: var(--quiet); } svg .head { font-weight: 600; } svg .grid { stroke: var(--line); }
polyline { fill: none; stroke-width: 2; } .map { border: 1px solid var(--line); border-radius: .5rem; }
.map circle { fill: var(--r0); opacity: .45; }
.r0 { stroke: var(--r0); --c: var(--r0); } .r1 { stroke: var(--r1); --c: var(--r1); }
.r2 { stroke: var(--r2); --c: var(--r2); } .r3 { stroke: var(--r3); --c: var(--r3); }
.r4 { stroke: var(--r4); --c: var(--r4); } .r5 { stroke: var(--r5); --c: var(--r5); }
.r6 { stroke: var(--r6); --c: var(--r6); } .r7 { stroke: var(--r7); --c: var(--r7); }
.legend { display: flex; flex-wrap: wrap; gap: 1rem; padding: 0; } .legend li { list-style: none; color: var(--c); }
.stages { width: 100%; } .stages th { white-space: nowrap; } .stages td { width: 100%; padding-right: 0; }
.stack { display: flex; height: 1.1rem; background: var(--line); border-radius: .2rem; overflow: hidden; }
.stack { margin: .25rem 0; } .stack span, .stages i { background: var(--c); }
.stages i { display: inline-block; width: .7rem; height: .7rem; border-radius: .15rem; margin-right: .3rem; }
.rejects { display: flex; flex-wrap: wrap; gap: .75rem; padding: 0; }
.rejects li { list-style: none; max-width: 12rem; }
.rejects img { display: block; max-width: 112px; border-radius: .3rem; }
"""


def write_report(root: Path) -> None:
    """Write the page for the latest run into the output directory, with pictures from the input."""
    manifest = read_manifest(root)
    assert manifest is not None, "the report follows the manifest"
    pictures = Pictures.of(root)
    shown = ""
    if manifest["rows"]:
        rows = Rows(root)
        shown = embedding_map(rows, pictures) + gallery(pick(rows), pictures)
    shown += section(collect(root), pictures)
    write_text(root / "report.html", page(root.resolve().name, manifest, timeline(read_timelines(root)), shown))


def page(name: str, manifest: dict[str, Any], over_time: str = "", pictures: str = "") -> str:
    """The page as HTML."""
    from lora_clip.diagnose.summary import describe_model

    run = manifest["run"]
    sections = [
        f"<h1>{html.escape(name)}</h1><p>{html.escape(describe_model(manifest))}</p>",
        _figures(manifest),
        f"<p><strong>{html.escape(run['verdict'])}</strong></p>" if run["verdict"] else "",
        over_time,
        stages(run),
        _ranks(run["by_rank"]),
        pictures,
        _table("Run", ((key, value) for key, value in _flatten(run) if key not in SHOWN_ABOVE)),
        _table("Fingerprint", _flatten(manifest["fingerprint"])),
        _table("Versions", manifest["versions"].items()),
    ]
    head = (
        f"<meta charset=utf-8><title>{html.escape(name)}</title>"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name=viewport content="width=device-width, initial-scale=1">'
    )
    body = f"<main>{''.join(sections)}</main>"
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
    from lora_clip.diagnose.summary import rank_table

    if not ranks:
        return ""
    most = max(rank["images"] for rank in ranks) or 1
    table = rank_table(ranks)
    header = "".join(f"<th scope=col>{cell}" for cell in table[0])
    rows = ("".join(f"<td>{cell}" for cell in row) for row in table[1:])
    bars = (f"<td style='width:40%'><div class=bar style='width:{100 * rank['images'] / most:.0f}%'>" for rank in ranks)
    body = "".join(f"<tr>{row}{bar}</div>" for row, bar in zip(rows, bars, strict=True))
    return f"<h2>Ranks</h2><div class=wide><table style='width:100%'><tr>{header}<td>{body}</table></div>"


def _table(title: str, rows: Iterable[tuple[Any, Any]]) -> str:
    body = "".join(
        f"<tr><th scope=row>{html.escape(str(key))}<td><code>{html.escape(str(value))}</code>" for key, value in rows
    )
    return f"<h2>{title}</h2><table>{body}</table>" if body else ""


def _flatten(value: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _flatten(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item
