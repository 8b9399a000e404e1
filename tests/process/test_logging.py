"""`logger=…` as it is typed: the curves of all ranks, once, and a missing package is one message."""

from __future__ import annotations

import csv
from importlib.util import find_spec
from pathlib import Path

import pytest

from helpers.jobs import nursery


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_ends_with_its_totals_in_a_csv_and_a_text_file(ranks: int, tmp_path: Path) -> None:
    run = nursery().predict("data.limit=100", "logger=csv", f"output_dir={tmp_path}", ranks=ranks)
    run.expect(0)
    [path] = tmp_path.glob("logs/csv/*/metrics.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["images"]) for row in rows if row["images"]][-1] == 100
    assert float(rows[-1]["run/images"]) == 100 and float(rows[-1]["run/rejects"]) == 0
    assert any(row["read_bytes_per_second"] and float(row["read_bytes_per_second"]) > 0 for row in rows)
    assert f"ranks: {ranks}" in (path.parent / "hparams.yaml").read_text()


def test_a_run_with_nothing_missing_logs_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        nursery().predict("data.limit=20", "logger=prometheus", f"output_dir={tmp_path}").expect(0)
        logged = tmp_path / "logs/metrics.prom"
        assert 'lora_clip_run_images{job="lora_clip"} 20' in logged.read_text().splitlines()
        logged.write_text(logged.read_text() + "as it was\n")
    assert logged.read_text().endswith("as it was\nas it was\n")


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed here")
def test_a_missing_package_is_one_message(tmp_path: Path) -> None:
    run = nursery().predict("data.limit=20", "logger=wandb", f"output_dir={tmp_path}").expect(2)
    assert "error: WandbLogger: wandb is not installed: type " in run.stderr and "Traceback" not in run.stderr
