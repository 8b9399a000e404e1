"""Lightning's loggers get the monitor's figures while a run goes on, and no run waits for one or fails with it."""

from __future__ import annotations

import csv
import math
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf

from helpers.jobs import wait_for
from lora_clip.app.launch import open_logger
from lora_clip.errors import ConfigError
from lora_clip.monitor import logs
from lora_clip.monitor.logs import LoggedFigures, figures_of
from lora_clip.monitor.progress import Counters, Progress
from lora_clip.monitor.prometheus import PrometheusTextfile

RECORD = {
    "images": 300,
    "images_per_second": 60.0,
    "wall_seconds": 7.0,
    "waiting_share": None,
    "bottleneck": "decoding",
}


def counted(seconds: float, **more: float) -> Counters:
    return Counters(seconds=seconds, first=1.0, watched=seconds, **more)


def test_figures_are_of_the_time_since_the_last_look() -> None:
    before = [counted(10, images=100, waiting=2, cpu=3, read_bytes=1000), counted(10, images=50, waiting=2, cpu=3)]
    now = [
        counted(14, images=140, waiting=4, cpu=5, read_bytes=9000, rejects=2, device_now=0.9),
        counted(14, images=80, waiting=2, cpu=5, worker_cpu=4, device_now=0.7),
    ]
    found = figures_of(before, now)
    assert (found["images"], found["rejects"], found["images_per_second"]) == (220, 2, 17.5)
    assert found["read_bytes_per_second"] == 2000 and found["waiting_share"] == 0.25 and found["blocked_share"] == 0
    assert found["cpu_cores"] == pytest.approx(2) and found["gpu_share"] == pytest.approx(0.8)
    assert found["rank_00/images_per_second"] == 10 and found["rank_01/images_per_second"] == 7.5
    assert "memory_bytes" not in found and not any(map(math.isnan, found.values())), "what is not known is left out"
    assert figures_of(now, now) == {}


def test_a_csv_grows_while_the_run_goes_on_and_ends_with_the_totals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "INTERVAL", 0.05)
    progress, path = Progress(tmp_path), tmp_path / "csv/version_0/metrics.csv"
    told = LoggedFigures(CSVLogger(tmp_path, "csv"), progress, 1, {"batch_size": 64})
    told.start()
    progress.write(0, counted(3, images=120))
    assert wait_for(lambda: path.exists() and rows(path)), "nothing is logged while the run goes on"
    assert rows(path)[0]["images_per_second"] == "40.0" and rows(path)[0]["step"] == "3"
    told.end([counted(5, images=300, rejects=1)], RECORD)
    last = rows(path)
    assert [row["images"] for row in last if row["images"]] == ["120.0", "300.0"]
    assert last[-1]["run/images_per_second"] == "60.0" and last[-1]["run/rejects"] == "1.0"
    assert "bottleneck: decoding" in (path.parent / "hparams.yaml").read_text()


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_tensorboard_gets_the_curves(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: the extra dev has it")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    logger = open_logger(configured("tensorboard", save_dir=str(tmp_path), name="tb", default_hp_metric=False))
    assert logger is not None
    told = LoggedFigures(logger, Progress(tmp_path), 1, {"batch_size": 64})
    told.start()
    told.end([counted(5, images=300)], RECORD)
    events = [event for file in tmp_path.glob("tb/version_0/events*") for event in EventFileLoader(str(file)).Load()]
    values = {
        value.tag: value.tensor.float_val[0]
        for event in events
        for value in event.summary.value
        if value.tensor.float_val
    }
    assert values["images"] == 300 and values["images_per_second"] == 60 and values["run/images_per_second"] == 60


class Slow(CSVLogger):
    """A server that does not answer, or that refuses."""

    def __init__(self, folder: Path, error: Exception | None = None) -> None:
        super().__init__(folder)
        self._error = error

    def log_metrics(self, *_: Any, **__: Any) -> None:
        if self._error:
            raise self._error
        time.sleep(600)


def test_nothing_waits_long_for_a_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "PATIENCE", 0.2)
    told = LoggedFigures(Slow(tmp_path), Progress(tmp_path), 1, {})
    told.start()
    told.end([counted(5, images=300)], RECORD)
    assert told.is_alive() and told.daemon


def test_a_logger_that_fails_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logs, "INTERVAL", 0.01)
    progress = Progress(tmp_path)
    progress.write(0, counted(3, images=120))
    told = LoggedFigures(Slow(tmp_path, OSError("no route to host")), progress, 1, {})
    told.start()
    time.sleep(0.1)
    told.end([counted(5, images=300)], RECORD)
    assert capsys.readouterr().err == "note: Slow failed (no route to host); the run goes on\n"


def test_prometheus_reads_the_latest_value_of_each_figure(tmp_path: Path) -> None:
    path = tmp_path / "textfile/emb.prom"
    logger = PrometheusTextfile(str(path), job='shoes "2026"')
    logger.log_metrics({"images": 5, "rank_03/images_per_second": 2.5, "gpu_share": math.nan}, step=1)
    logger.log_metrics({"images": 5_850_000_009, "run/wall_seconds": 3.25})
    assert path.read_text().splitlines() == [
        r'lora_clip_images{job="shoes \"2026\""} 5850000009',
        r'lora_clip_rank_images_per_second{job="shoes \"2026\"",rank="3"} 2.5',
        r'lora_clip_run_wall_seconds{job="shoes \"2026\""} 3.25',
    ]
    assert [one.name for one in path.parent.iterdir()] == ["emb.prom"]


def configured(kind: str, **more: Any) -> Any:
    names = {"csv": "CSVLogger", "tensorboard": "TensorBoardLogger", "mlflow": "MLFlowLogger", "wandb": "WandbLogger"}
    target = f"lightning.pytorch.loggers.{names[kind]}" if kind in names else kind
    return OmegaConf.create({"logger": {"_target_": target, **more}})


def test_no_logger_is_none() -> None:
    assert open_logger(OmegaConf.create({"logger": None})) is None


@pytest.mark.parametrize(
    ("kind", "package"), [("tensorboard", "tensorboard"), ("wandb", "wandb"), ("mlflow", "mlflow")]
)
def test_a_logger_whose_package_is_missing_says_what_to_type(kind: str, package: str, tmp_path: Path) -> None:
    if find_spec(package) is not None:
        pytest.skip(f"{package} is installed here")
    with pytest.raises(ConfigError, match=rf"Logger: {package} is not installed: type .* pip install {package}$"):
        open_logger(configured(kind, save_dir=str(tmp_path)))


def test_what_is_no_logger_is_refused() -> None:
    with pytest.raises(ConfigError, match="Counter is none of Lightning's loggers"):
        open_logger(configured("collections.Counter"))
    with pytest.raises(ConfigError, match=r"CSVLogger cannot be opened: .*no_such_argument"):
        open_logger(configured("csv", save_dir="x", no_such_argument=1))
