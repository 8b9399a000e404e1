"""The results: a row each, as a text table, as JSON, as a bar chart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_clip.benchmark.ceilings import Ceilings
from lora_clip.benchmark.measure import Timing
from lora_clip.report.charts import Length, lying_bars
from lora_clip.terminal import align

WHOLE = 1000
HEADER = (
    "pattern", "devices", "workers", "images/s", "s for 1,000", "29,104 images", "x the loop", "of the ceiling",
)  # fmt: skip
LOOP = "one-at-a-time"
UNKNOWN = "- in a row that was run: so few images do not show in its time; take more (--subset)"


@dataclass(frozen=True)
class Row:
    """A line of the table: `rate` in marginal images/s; times in seconds of whole processes, None for a ceiling.

    What too few images leave unknown is None, too.
    """

    pattern: str
    devices: str
    workers: str
    rate: float | None
    seconds_for_1000: float | None
    projected_seconds: float | None
    times_the_loop: float | None
    share_of_ceiling: float | None

    @property
    def is_ceiling(self) -> bool:
        """Whether nothing was run for it as a program."""
        return "ceiling:" in self.pattern


def rows(timings: Sequence[Timing], ceilings: Ceilings, collection: int) -> list[Row]:
    """The rows of what was run, then of the ceilings; `collection` is the number of images to project to."""
    loop = next((timing.rate for timing in timings if timing.pattern.name == LOOP), None)
    ran = [
        Row(
            timing.pattern.name,
            timing.pattern.devices,
            timing.pattern.workers,
            timing.rate,
            timing.whole(WHOLE),
            timing.whole(collection),
            _ratio(timing.rate, loop),
            _ratio(timing.rate, ceilings.binding),
        )
        for timing in timings
    ]
    return ran + [
        Row(name, devices, workers, rate, None, None, _ratio(rate, loop), rate / ceilings.binding)
        for name, devices, workers, rate in _limits(ceilings)
    ]


def _ratio(rate: float | None, other: float | None) -> float | None:
    return rate and other and rate / other


def _limits(ceilings: Ceilings) -> list[tuple[str, str, str, float]]:
    cores, devices = f"{ceilings.cores} cores", f"{ceilings.devices} x {ceilings.device}"
    both = "pixels and forward on the same cores" if ceilings.device == "cpu" else "the slower of pixels and forward"
    return [
        ("ceiling: decode only", "-", cores, ceilings.decode),
        ("ceiling: decode + resize", "-", cores, ceilings.pixels),
        (f"ceiling: forward only, {ceilings.dtype}, batch {ceilings.batch_size}", devices, "-", ceilings.forward),
        (f"binding ceiling: {both}", devices, cores, ceilings.binding),
    ]


def text(found: Sequence[Row]) -> str:
    """The table."""
    notes = [UNKNOWN] if any(row.rate is None for row in found) else []
    return "\n".join([*align([HEADER, *(_cells(row) for row in found)]), *notes])


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.pattern,
        row.devices,
        row.workers,
        _told(row.rate),
        _told(row.seconds_for_1000),
        "-" if row.projected_seconds is None else duration(row.projected_seconds),
        _told(row.times_the_loop),
        "-" if row.share_of_ceiling is None else f"{row.share_of_ceiling:.0%}",
    )


def _told(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def duration(seconds: float) -> str:
    """Seconds in the unit in which they are read: 14 s, 6 min 12 s, 13 h 20 min."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def chart(found: Sequence[Row], title: str) -> str:
    """The rates as bars, an SVG document; the ceilings are the pale ones."""
    described = "; ".join(f"{_name(row)}: {_told(row.rate)} images per second" for row in found)
    bars = [Length(_name(row), row.rate or 0.0, _told(row.rate), row.is_ceiling) for row in found]
    return lying_bars(title, described, bars).document()


def _name(row: Row) -> str:
    return row.pattern if row.is_ceiling else f"{row.pattern}, {row.workers}"
