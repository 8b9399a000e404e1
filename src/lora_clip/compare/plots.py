"""Plots as SVG, drawn with the page's own colours."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np

from lora_clip.report.charts import nice_ceiling

WIDTH, HEIGHT, LEFT, BELOW, TOP = 720, 260, 56, 44, 24
BINS = 40
SIDES = ("first", "second")


def histogram(values_N: np.ndarray, title: str) -> str:
    """How often which value occurs."""
    counts, edges = np.histogram(values_N, BINS, range=_range(values_N))
    top = nice_ceiling(float(counts.max()))
    wide = (WIDTH - LEFT) / BINS
    parts = [
        _bar(LEFT + at * wide, wide - 1, count / top, "second", f"{edges[at]:.3f} to {edges[at + 1]:.3f}: {count:,}")
        for at, count in enumerate(counts)
        if count
    ]
    labels = [(LEFT + at * wide, f"{edges[at]:.2f}") for at in range(0, BINS + 1, BINS // 5)]
    said = f"{title}: median {np.median(values_N):.3f}, of {len(values_N):,} images"
    return _svg(title, said, [*_grid(top, "{:,.0f}"), *parts], labels)


def _range(values_N: np.ndarray) -> tuple[float, float]:
    """The values' range, not so narrow that rounding would look like spread."""
    low, high = float(values_N.min()), float(values_N.max())
    return (low, high) if high - low > 1e-3 else (low - 5e-4, high + 5e-4)


def bars(groups: Sequence[tuple[str, *tuple[float, ...]]], title: str) -> str:
    """A group of bars for each name, of shares from 0 to 1; of one bar, or of two in the colours of the two outputs."""
    wide = (WIDTH - LEFT) / len(groups)
    parts, labels = [], []
    for at, (name, *shares) in enumerate(groups):
        each, left = wide * 0.8 / len(shares), LEFT + wide * (at + 0.1)
        for number, share in enumerate(shares):
            side = SIDES[number] if len(shares) > 1 else "second"
            parts.append(_bar(left + number * each, each - 2, share, side, f"{name}: {share:.3f}"))
        labels.append((left + wide * 0.4, name))
    said = "; ".join(f"{name}: {' and '.join(f'{share:.3f}' for share in shares)}" for name, *shares in groups)
    return _svg(title, said, [*_grid(1.0, "{:.0%}"), *parts], labels)


def _bar(left: float, wide: float, share: float, side: str, said: str) -> str:
    tall = share * (HEIGHT - BELOW - TOP)
    return (
        f'<rect class="{side}" x="{left:.1f}" y="{HEIGHT - BELOW - tall:.1f}" width="{wide:.1f}" height="{tall:.1f}">'
        f"<title>{html.escape(said)}</title></rect>"
    )


def _grid(top: float, form: str) -> list[str]:
    heights = [(part, HEIGHT - BELOW - part / 4 * (HEIGHT - BELOW - TOP)) for part in range(5)]
    return [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{form.format(top * part / 4)}</text>'
        for part, y in heights
    ]


def _svg(title: str, said: str, parts: Sequence[str], labels: Sequence[tuple[float, str]]) -> str:
    below = "".join(
        f'<text x="{x:.1f}" y="{HEIGHT - BELOW + 18}" text-anchor="middle">{html.escape(text)}</text>'
        for x, text in labels
    )
    axis = f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{html.escape(title)}</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + 24} {HEIGHT}" role="img">'
        f"<title>{html.escape(title)}</title><desc>{html.escape(said)}</desc>{''.join(parts)}{below}{axis}</svg>"
    )
