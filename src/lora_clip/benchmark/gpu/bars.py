"""What this project promises of its speed and its embeddings, beside what was found: reached, missed, not measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from lora_clip.benchmark.gpu.findings import DONE, Result, Row
from lora_clip.benchmark.gpu.jobs import PREDICTING, WHOLE
from lora_clip.benchmark.gpu.pixels import ALL
from lora_clip.benchmark.gpu.products import LARGE, tower_of
from lora_clip.benchmark.gpu.safety import EQUAL, SAID
from lora_clip.benchmark.gpu.sizes import FULL

REACHED, MISSED, NOT_MEASURED = "reached", "missed", "not measured"
MATRIX_SHARE, DECODING_SHARE, SECONDS = 0.55, 0.90, 30.0
LEAST_COSINE = {"float32": 0.9999, "bfloat16": 0.999, "float16": 0.999}
PUBLISHED_TOWERS = {FULL.small: 18_042, FULL.large: 1_191}
"""Images/s of timm's forward alone on one RTX PRO 6000 (bfloat16, compiled, batches of 2,048)."""
PUBLISHED_JOBS = {FULL.small: 2_500, FULL.large: 312}
"""Images/s from JPEG of clip-retrieval on one A100."""
ELSEWHERE = {
    "decode-bound and forward-bound, at least 5 and 4 times the best peer": "lora-clip benchmark",
    "three adapters in one pass, at most 1.3 times one": "lora-clip benchmark --one-pass",
    "start, at most 1.3 times its imports": "lora-clip benchmark --start",
    "memory over 15,000 images, at most 1.1 times that over 3,000": "lora-clip benchmark --memory",
    "with one of two ranks half as fast, within 1.1 of both": "tests/unit/test_queue.py, simulated",
}
"""Bars that something else tells of."""


@dataclass(frozen=True)
class Verdict:
    """A bar in words, what was found, and one of REACHED, MISSED, NOT_MEASURED."""

    bar: str
    found: str
    verdict: str


class Found:
    """The figures of all steps."""

    def __init__(self, results: Iterable[Result]) -> None:
        self._results = {result.step: result for result in results}

    def rows(self, step: str, **of: Any) -> list[Row]:
        """Those of a step that are of something."""
        return [row for row in self._results[step].rows if row.is_of(of)] if step in self._results else []

    def is_whole(self, step: str) -> bool:
        """Whether a step came to its end."""
        return step in self._results and self._results[step].status == DONE

    def numbers(self, step: str, **of: Any) -> list[float]:
        """Their values that are numbers."""
        return [float(row.value) for row in self.rows(step, **of) if isinstance(row.value, int | float)]

    def number(self, step: str, **of: Any) -> float | None:
        """The first of them."""
        return next(iter(self.numbers(step, **of)), None)

    def fastest(self, **of: Any) -> float | None:
        """The most images/s of a tower, in whatever way it was computed."""
        rates = (row.value for row in self.rows("tower", **of) if "way" in row.of)
        return max((float(rate) for rate in rates if isinstance(rate, int | float)), default=None)

    def marginal(self) -> float | None:
        """Images/s of whole jobs with the small model: from two numbers of images, so that no start is in it."""
        sizes = (FULL.job, FULL.long_job)
        one, other = (self.number("job" if n == FULL.job else "long-job", job=WHOLE, images=n) for n in sizes)
        if one is None or other is None or other <= one:
            return None
        return (sizes[1] - sizes[0]) / (other - one)


def verdicts(results: Iterable[Result]) -> list[Verdict]:
    """All bars, in the order in which they are read."""
    found = Found(results)
    told = [bar(found) for bar in BARS]
    return told + [Verdict(bar, f"not by this command: {how}", NOT_MEASURED) for bar, how in ELSEWHERE.items()]


def _verdict(bar: str, reached: bool | None, found: str) -> Verdict:
    return Verdict(
        bar, found if reached is not None else "-", {True: REACHED, False: MISSED, None: NOT_MEASURED}[reached]
    )


def _fidelity(dtype: str, found: Found) -> Verdict:
    least, rows = LEAST_COSINE[dtype], found.rows("fidelity", dtype=dtype)
    bar = f"cosine of {dtype} to the unmerged float32 network, raw and centred: at least {least}"
    if failed := [row for row in rows if row.value is None]:
        return _verdict(bar, False, failed[0].note)
    lowest = min(rows, key=lambda row: float(row.value or 0.0), default=None)
    if lowest is None:
        return _verdict(bar, None, "")
    value = float(lowest.value or 0.0)
    told = f"{value:.6f} ({lowest.of['model']}, {lowest.of['kind']})"
    if value >= least and not found.is_whole("fidelity"):  # what was not looked at may be worse
        return Verdict(bar, f"so far {told}", NOT_MEASURED)
    return _verdict(bar, value >= least, told)


def _arithmetic(dtype: str, found: Found) -> Verdict:
    bar = f"ViT-L/14 in {dtype}: at least {MATRIX_SHARE:.0%} of the measured matrix rate"
    matrix = found.number("products", product=LARGE, dtype=dtype)
    rate = found.fastest(model=FULL.large, dtype=dtype)
    if matrix is None or rate is None:
        return _verdict(bar, None, "")
    reached = rate * tower_of(FULL.large).gflop / 1e3
    share = reached / matrix
    return _verdict(
        bar, share >= MATRIX_SHARE, f"{share:.1%}: {reached:,.0f} of {matrix:,.0f} TFLOP/s, {rate:,.0f} images/s"
    )


def _decoding(found: Found) -> Verdict:
    bar = f"ViT-B/32 from JPEG: at least {DECODING_SHARE:.0%} of what the cores decode"
    ceiling, rate = found.number("pixels", pixels="decode and resize", on=ALL), found.marginal()
    if ceiling is None or rate is None:
        return _verdict(bar, None, "")
    return _verdict(
        bar, rate >= DECODING_SHARE * ceiling, f"{rate / ceiling:.1%}: {rate:,.0f} of {ceiling:,.0f} images/s"
    )


def _seconds(found: Found) -> Verdict:
    bar = f"29,104 images with ViT-B/32 in under {SECONDS:.0f} s, whole process"
    seconds = found.number("job", job=WHOLE, images=FULL.job)
    return _verdict(bar, None if seconds is None else seconds < SECONDS, f"{seconds} s for {FULL.job:,}")


def _at_least(bar: str, least: float, value: Callable[[Found], float | None], found: Found) -> Verdict:
    rate = value(found)
    return _verdict(
        f"{bar}: more than {least:,} images/s", None if rate is None else rate > least, f"{rate or 0:,.0f} images/s"
    )


def _says(bar: str, step: str, of: Mapping[str, Any], meant: float | str, found: Found) -> Verdict:
    rows = [row for row in found.rows(step, **of) if row.value is not None]
    if not rows:
        return _verdict(bar, None, "")
    wrong = next((row for row in rows if row.value != meant), None)
    told = wrong or rows[0]
    return _verdict(bar, wrong is None, ", ".join(filter(None, (f"{told.value} {told.unit}".strip(), told.note))))


def _fastest(model: str, found: Found) -> float | None:
    return found.fastest(model=model)


def _from_jpeg(model: str, found: Found) -> float | None:
    if model == FULL.small:
        return found.marginal()
    return found.number("large-job", job=PREDICTING, model=model)


BARS: tuple[Callable[[Found], Verdict], ...] = (
    *(partial(_fidelity, dtype) for dtype in LEAST_COSINE),
    *(partial(_arithmetic, dtype) for dtype in ("bfloat16", "float16")),
    _decoding,
    _seconds,
    partial(_says, "the same bytes over workers", "same-bytes", {"same": "over workers"}, EQUAL),
    partial(_says, "the same bytes after a kill", "same-bytes", {"same": "after a kill and a resume"}, EQUAL),
    partial(_says, "out of memory is one message and a status", "memory", {}, SAID),
    partial(_says, "no error under compute-sanitizer", "sanitizer", {}, 0),
    *(
        partial(_at_least, f"published, {model} alone on one RTX PRO 6000", least, partial(_fastest, model))
        for model, least in PUBLISHED_TOWERS.items()
    ),
    *(
        partial(_at_least, f"published, {model} from JPEG on one A100", least, partial(_from_jpeg, model))
        for model, least in PUBLISHED_JOBS.items()
    ),
)
