"""What was found, as a person reads it: in a terminal, and as Markdown for docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Sequence

from lora_clip.benchmark.gpu.bars import Verdict
from lora_clip.benchmark.gpu.findings import DONE, NOT_HERE, Result, Row
from lora_clip.terminal import align

HEADER = ("step", "of what", "found", "note")
BARS_HEADER = ("bar", "verdict", "found")
TINY = "Tried with tiny sizes: these figures say that the command works, and nothing of any machine."
LONG = 100


def text(results: Sequence[Result], bars: Sequence[Verdict], tiny: bool) -> str:
    """Both tables for a terminal."""
    rows = [(step, what, found, _short(note)) for step, what, found, note in _rows(results)]
    judged = [(bar.bar, bar.verdict, _short(bar.found)) for bar in bars]
    note = ["", TINY] if tiny else []
    return "\n".join([*align([HEADER, *rows]), "", *align([BARS_HEADER, *judged]), *note])


def markdown(results: Sequence[Result], bars: Sequence[Verdict], tiny: bool) -> str:
    """Both tables as a document."""
    judged = [(bar.bar, bar.verdict, bar.found) for bar in bars]
    parts = ["# lora-clip benchmark --gpu", *([TINY] if tiny else []), _table(HEADER, _rows(results))]
    return "\n\n".join([*parts, "## Bars", _table(BARS_HEADER, judged)]) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _rows(results: Sequence[Result]) -> list[tuple[str, str, str, str]]:
    return [line for result in results for line in _of(result)]


def _of(result: Result) -> list[tuple[str, str, str, str]]:
    """A line with how the step ended, then one for each figure."""
    status = result.why if result.status == NOT_HERE else result.status
    note = "" if result.status in (DONE, NOT_HERE) else result.why
    took = f"{result.seconds:.1f} s" if result.seconds else ""
    first = (result.step, result.title, status, ", ".join(filter(None, (took, note))))
    return [first, *((result.step, _what(row), _value(row), row.note) for row in result.rows)]


def _what(row: Row) -> str:
    """`vit-l-14, float16, batch 256, eager`."""
    return ", ".join(f"{key} {value:,}" if isinstance(value, int) else str(value) for key, value in row.of.items())


def _value(row: Row) -> str:
    if row.value is None:
        return "-"
    if isinstance(row.value, str):
        told = row.value
    elif row.unit == "cosine":
        return f"{row.value:.6f}"
    else:
        told = f"{row.value:,.0f}" if abs(row.value) >= 1000 else f"{row.value:g}"
    return f"{told} {row.unit}".strip()


def _short(words: str) -> str:
    return words if len(words) <= LONG else f"{words[: LONG - 2]} …"
