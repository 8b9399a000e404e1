"""scale: the simulation and the measurements of many shards run, and what they say of a small size is so."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lora_clip.benchmark.scale import Cluster, Simulation

SCRIPT = Path(__file__).parents[2] / "scripts" / "scale.py"
SMALL = Cluster(ranks=70, workers=2, shards=400, images=2000, stuck=0.0, restart=1.0)


def committed(simulation: Simulation) -> bool:
    """Whether the ranges of each shard are its images, each once."""
    runs = [sorted(simulation.done[shard]) for shard in range(len(simulation.sizes))]
    whole = [[start for start, _ in own] == [0, *(stop for _, stop in own[:-1])] for own in runs]
    return all(whole) and [own[-1][1] for own in runs] == simulation.sizes


@pytest.mark.parametrize(("deaths", "alone"), [(0, False), (3, False), (3, True)])
def test_everything_is_embedded_whoever_dies(deaths: int, alone: bool) -> None:
    simulation = Simulation(replace(SMALL, deaths=deaths, alone=alone))
    outcome = simulation.run()
    assert committed(simulation)
    assert outcome.rounds == (1 if not deaths else deaths + 1 if not alone else 2)
    assert bool(outcome.again) == bool(deaths)


def test_the_store_is_asked_a_few_times_a_range_however_many_ranks_there_are() -> None:
    asked = []
    for ranks in (70, 280):
        simulation = Simulation(replace(SMALL, ranks=ranks, shards=8 * ranks))
        asked.append(simulation.run().requests / sum(map(len, simulation.done.values())))
    assert asked[1] < 1.5 * asked[0]


def test_ranks_of_unequal_speed_lose_little() -> None:
    outcome = Simulation(replace(SMALL, shards=4000, slow=0.3)).run()
    assert outcome.efficiency > 0.9


def measured(*command: str) -> str:
    done = subprocess.run([sys.executable, SCRIPT, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_many_shards_are_measured(tmp_path: Path) -> None:
    told = measured("shards", "60", "--folder", str(tmp_path))
    assert "sound: 600,000 rows, 60 shards" in told
    assert "30 gaps" in told
    assert not any(tmp_path.iterdir())
