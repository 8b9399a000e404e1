"""What several outputs lack, as one list of gaps, each of whose batches is one that its outputs would have alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from lora_clip.types import WorkRange

Who = dict[WorkRange, frozenset[int]]
"""Batches that not all outputs lack, with the numbers of those that do."""


def batches_of(gaps: Iterable[WorkRange], batch_size: int) -> Iterator[tuple[WorkRange, WorkRange]]:
    """Each gap with its batches, one after the other."""
    for gap in gaps:
        for start in range(gap.start, gap.stop, batch_size):
            yield gap, WorkRange(gap.shard, start, min(start + batch_size, gap.stop))


def first_batch(work: WorkRange, batch_size: int) -> WorkRange:
    """The batch that a range begins with: it tells whose range it is."""
    return WorkRange(work.shard, work.start, min(work.start + batch_size, work.stop))


def union(of_each: Sequence[Mapping[int, Sequence[WorkRange]]], batch_size: int) -> tuple[list[WorkRange], Who]:
    """The gaps of all outputs (`of_each`: by shard), each lacked by the same outputs from its start to its stop.

    Outputs mostly lack the same. Where they do not (an interruption, a new adapter) a shard's gaps are taken apart into
    batches: equal ones are shared, and where gaps begin at different remainders each output has its own.
    """
    gaps: list[WorkRange] = []
    only: Who = {}
    for shard in sorted({shard for own in of_each for shard in own}):
        mine = [own.get(shard, ()) for own in of_each]
        if all(own == mine[0] for own in mine):
            gaps += mine[0]
        else:
            gaps += _taken_apart(mine, batch_size, only)
    return gaps, only


def _taken_apart(mine: Sequence[Sequence[WorkRange]], batch_size: int, only: Who) -> list[WorkRange]:
    who: dict[WorkRange, set[int]] = {}
    for number, own in enumerate(mine):
        for _, batch in batches_of(own, batch_size):
            who.setdefault(batch, set()).add(number)
    groups: dict[frozenset[int], list[WorkRange]] = {}
    for batch in sorted(who):
        groups.setdefault(frozenset(who[batch]), []).append(batch)
    only.update({batch: outputs for outputs, own in groups.items() for batch in own if len(outputs) < len(mine)})
    return [gap for own in groups.values() for gap in _joined(own, batch_size)]


def _joined(batches: Iterable[WorkRange], batch_size: int) -> list[WorkRange]:
    """Batches that follow one another as gaps, whose batches are the same ones again."""
    gaps: list[WorkRange] = []
    for batch in batches:
        if gaps and gaps[-1].stop == batch.start and not (batch.start - gaps[-1].start) % batch_size:
            gaps[-1] = WorkRange(batch.shard, gaps[-1].start, batch.stop)
        else:
            gaps.append(batch)
    return gaps
