"""The page of a comparison: figures, plots, and the pictures that moved."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from lora_clip.compare.measures import RANKS, Neighbours, Recall
from lora_clip.compare.plots import bars, histogram
from lora_clip.diagnose.summary import describe_model
from lora_clip.search.collection import Collection
from lora_clip.search.page import document, picture

SHOWN, SHOWN_NEIGHBOURS = 10, 6
PIXELS = 96
STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; --line: #8885; --quiet: #6b6b6b;
  --first: #a8500f; --second: #1f5fbf; --ground: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --quiet: #a4a4a4; --first: #f0a060; --second: #7fb0ff; --ground: #16181c; } }
body { max-width: 64rem; margin: 0 auto; padding: 1rem; background: var(--ground); overflow-wrap: anywhere; }
h2 { margin-top: 2.5rem; } .first { color: var(--first); } .second { color: var(--second); }
svg { width: 100%; height: auto; max-width: 46rem; } svg text { fill: currentColor; font: 13px system-ui, sans-serif; }
svg .grid { stroke: var(--line); } svg .first { fill: var(--first); } svg .second { fill: var(--second); }
table { border-collapse: collapse; } th, td { text-align: left; padding: .3rem 1rem .3rem 0; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.case { border-top: 1px solid var(--line); padding: .75rem 0; }
.case > div { display: flex; flex-wrap: wrap; gap: .4rem; align-items: start; margin: .3rem 0; }
.case b { flex: 0 0 5.5rem; font-weight: 600; } figure { margin: 0; width: 96px; }
img, .none { display: block; width: 96px; height: 96px; object-fit: contain; background: #8881; border-radius: .3rem; }
.none { display: grid; place-items: center; font-size: .75rem; color: var(--quiet); }
figcaption { font-size: .75rem; line-height: 1.3; color: var(--quiet); }
"""


def page(
    first: Collection,
    second: Collection,
    images: int,
    cosines_N: np.ndarray | None,
    near: Neighbours,
    told: Recall | str,
) -> str:
    """The comparison as HTML; everything that comes from the data is escaped."""
    sides = Sides.of(first, second)
    body = [
        f"<h1>What changed between {sides.html('first')} and {sides.html('second')}</h1>",
        f"<p>{sides.html('first')}: {html.escape(describe_model(first.manifest))}<br>",
        f"{sides.html('second')}: {html.escape(describe_model(second.manifest))}</p>",
        f"<p>{images:,} images are in both.</p>",
        _recall(first, sides, told),
        _cosines(cosines_N),
        _neighbours(first, second, sides, near),
    ]
    return document(f"{sides.first} and {sides.second}", STYLE, f"<main>{''.join(body)}</main>")


class Sides(NamedTuple):
    """What the two outputs are called."""

    first: str
    second: str

    @classmethod
    def of(cls, first: Collection, second: Collection) -> Sides:
        """Their folders' names, or their paths where the names are the same."""
        paths = [collection.root.resolve() for collection in (first, second)]
        names = [path.name for path in paths]
        return cls(*(names if names[0] != names[1] else map(str, paths)))

    def html(self, side: str) -> str:
        """A name in its colour."""
        return f"<span class={side}>{html.escape(getattr(self, side))}</span>"


def _recall(first: Collection, sides: Sides, told: Recall | str) -> str:
    heading = "<h2>What the captions find</h2>"
    if isinstance(told, str):
        return f"{heading}<p>{html.escape(told)}</p>"
    shares = [(f"recall@{k}", told.at(told.first_S, k), told.at(told.second_S, k)) for k in RANKS]
    rows = "".join(
        f"<tr><th scope=row>{name}<td class=number>{one:.3f}<td class=number>{other:.3f}" for name, one, other in shares
    )
    head = f"<tr><th><th scope=col>{sides.html('first')}<th scope=col>{sides.html('second')}"
    return (
        f"{heading}<p>Each of {len(told.captions):,} captions is searched for; recall@k is the share that finds an "
        f"image of that caption among the first k.</p>{bars(shares, 'recall of captions')}<table>{head}{rows}</table>"
        + _moved(first, told, "found", told.first_S == 0, told.second_S == 1, sides.html("second"))
        + _moved(first, told, "lost", told.second_S == 0, told.first_S == 1, sides.html("first"))
    )


def _moved(first: Collection, told: Recall, word: str, not_one_S: np.ndarray, other_S: np.ndarray, name: str) -> str:
    """Captions that one output puts first and the other does not find."""
    chosen = np.flatnonzero(not_one_S & other_S)
    if not len(chosen):
        return f"<p>No caption is {word}: first in {name}, and not among the first {max(RANKS)} in the other.</p>"
    figures = "".join(_figure(first, int(told.ids_S[at])) for at in chosen[: 2 * SHOWN_NEIGHBOURS])
    return (
        f"<p>{len(chosen):,} captions are {word}: first in {name}, not among the first {max(RANKS)} in the other.</p>"
        f"<div class=case><div>{figures}</div></div>"
    )


def _cosines(cosines_N: np.ndarray | None) -> str:
    heading = "<h2>How far the images moved</h2>"
    if cosines_N is None:
        return f"{heading}<p>The embeddings are of different widths: no cosine lies between them.</p>"
    low, median, high = np.quantile(cosines_N, (0.05, 0.5, 0.95))
    return (
        f"{heading}<p>The cosine between an image's two embeddings is {median:.3f} in the median, and from {low:.3f} "
        f"to {high:.3f} for nine of ten images. 1: nothing changed.</p>"
        + histogram(cosines_N, "cosine between the two embeddings of an image")
    )


def _neighbours(first: Collection, second: Collection, sides: Sides, near: Neighbours) -> str:
    k = near.first_SK.shape[1]
    counts = np.bincount(near.same_S, minlength=k + 1)
    shares = [(str(same), count / len(near.same_S)) for same, count in enumerate(counts)]
    order = np.argsort(near.same_S, kind="stable")[:SHOWN]
    cases = "".join(_case(first, second, sides, near, int(at)) for at in order)
    return (
        f"<h2>Whose neighbours changed most</h2><p>Of an image's {k} nearest neighbours, {near.same_S.mean():.1f} are "
        f"the same in both, on average over {len(near.same_S):,} images.</p>"
        f"{bars(shares, f'share of images, by how many of {k} neighbours are the same')}{cases}"
    )


def _case(first: Collection, second: Collection, sides: Sides, near: Neighbours, at: int) -> str:
    """An image with its neighbours in both outputs."""
    return (
        f"<div class=case><div><b>image</b>{_figure(first, int(near.sampled.first_N[at]))}</div>"
        f"<div><b>{sides.html('first')}</b>{_figures(first, near.first_SK[at])}</div>"
        f"<div><b>{sides.html('second')}</b>{_figures(first, near.second_SK[at])}</div></div>"
    )


def _figures(collection: Collection, ids_K: Iterable[int] | np.ndarray) -> str:
    return "".join(_figure(collection, int(id_)) for id_ in list(ids_K)[:SHOWN_NEIGHBOURS] if id_ >= 0)


def _figure(collection: Collection, id_: int) -> str:
    hit = collection.hits(np.ones(1), np.array([id_]))[0]
    name = hit.caption or hit.key
    return f"<figure>{picture(hit.thumbnail(PIXELS), name)}<figcaption>{html.escape(name)}</figcaption></figure>"


def figures(
    first: Collection,
    second: Collection,
    images: int,
    cosines_N: np.ndarray | None,
    near: Neighbours,
    told: Recall | str,
) -> Sequence[str]:
    """The figures of the page, for a terminal."""
    lines = [f"images:     {images:,} in both"]
    if cosines_N is not None:
        low, median, high = np.quantile(cosines_N, (0.05, 0.5, 0.95))
        lines.append(f"cosine:     median {median:.3f}, nine of ten from {low:.3f} to {high:.3f}")
    lines.append(f"neighbours: {near.same_S.mean():.1f} of {near.first_SK.shape[1]} are the same")
    if isinstance(told, str):
        return [*lines, told]
    for name, ranks_S in zip(Sides.of(first, second), (told.first_S, told.second_S), strict=True):
        shares = ", ".join(f"recall@{k} {told.at(ranks_S, k):.3f}" for k in RANKS)
        lines.append(f"captions:   {shares} in {name}")
    return lines
