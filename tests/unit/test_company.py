"""company: who is not heard of is named, once, and to a rank that has nothing else to do."""

from __future__ import annotations

import pytest

from helpers.jobs import wait_for
from lora_clip.errors import PeerError
from lora_clip.loading import company
from lora_clip.loading.company import Company
from lora_clip.loading.counters import serve_counters


def talks(one: Company) -> bool:
    return any(thread.is_alive() for thread in one._threads)


@pytest.mark.parametrize(
    ("rank", "ranks", "named"),
    [
        (0, 2, "rank 1 was"),
        (0, 3, "ranks 1, 2 were"),
        (0, 9, "ranks 1, 2, 3, 4, 5 and 3 more were"),
        (3, 9, "rank 0 was"),
    ],
)
def test_silent_ranks_are_named(rank: int, ranks: int, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SECONDS_BETWEEN_WORDS", "SECONDS_BETWEEN_LOOKS", "PATIENCE"):
        monkeypatch.setattr(company, name, 0.05)
    served, counters = serve_counters()
    lost: list[PeerError] = []
    alone = Company(counters, rank, ranks, lost.append)
    assert wait_for(lambda: lost)
    assert str(lost[0]).startswith(f"{named} not heard of for 0.05 s: frozen, or cut off")
    alone.leave()
    assert wait_for(lambda: not talks(alone))
    assert len(lost) == 1
    del served


def test_ranks_hear_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(company, "SECONDS_BETWEEN_WORDS", 0.01)
    served, counters = serve_counters()
    lost: list[PeerError] = []
    ranks = [Company(counters, rank, 3, lost.append) for rank in range(3)]
    assert wait_for(lambda: all(words for one in ranks for words, _ in one._heard.values()))
    for one in ranks:
        one.leave()
    assert wait_for(lambda: not any(map(talks, ranks))) and not lost
    del served
