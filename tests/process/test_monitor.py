"""What a run says of itself: where the time went, which device it was, the timeline, the live line, all ranks."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers.jobs import Meeting, new_folder, nursery, wait_for
from lora_clip.monitor import timeline
from lora_clip.monitor.bar import Bar, postfix
from lora_clip.monitor.callback import Monitor, Watch
from lora_clip.monitor.devices import Gauge, open_gauge
from lora_clip.monitor.processes import Processes
from lora_clip.monitor.progress import UNKNOWN, Counters, Progress
from lora_clip.monitor.stopwatch import DeviceStopwatch, Stopwatch, WaitingStopwatch, stopwatch_for
from lora_clip.monitor.timeline import Timeline, line_of

# --- Where the time goes -------------------------------------------------------------------------------------------


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("lora_clip.monitor.stopwatch.time", SimpleNamespace(perf_counter=lambda: self.now))

    def batch(self, stopwatch: Stopwatch, waiting: float, forward: float, blocked: float) -> None:
        for seconds, border in ((waiting, stopwatch.batch_came), (forward, stopwatch.batch_left)):
            self.now += seconds
            border()
        self.now += blocked
        stopwatch.batch_taken()


def test_the_time_of_a_rank_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    stopwatch = Stopwatch()
    clock.batch(stopwatch, 5, 3, 0)
    assert stopwatch.first == 8 and stopwatch.read() == (0, 0, 0), "the first batch pays for the start"
    clock.batch(stopwatch, 2, 1, 0.5)
    assert stopwatch.read() == (2, 1, 0.5)
    clock.now += 4
    assert stopwatch.read() == (6, 1, 0.5), "waiting that goes on counts as well"
    stopwatch.last_batch_left()
    clock.now += 3
    assert stopwatch.read() == (6, 1, 3.5), "the writer finishes its work"
    assert stopwatch.elapsed() == 18.5


class Stream:
    """A device's stream: `work` seconds are queued; events happen when the work before them is done."""

    def __init__(self) -> None:
        self.queued = self.done = 0.0

    def event(self) -> Any:
        event = SimpleNamespace(at=None)
        event.record = lambda: setattr(event, "at", self.queued)
        event.query = lambda: event.at <= self.done
        event.elapsed_time = lambda later: 1000 * (later.at - event.at)
        event.synchronize = self.wait
        return event

    def wait(self) -> None:
        assert self.done == self.queued, "waiting for the device holds the host up"


class Gpu:
    """A rank with a GPU: what passes on the host, and how long the device idles and computes meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock, self.stream = Clock(monkeypatch), Stream()
        self.stopwatch = DeviceStopwatch(self.stream.event)

    def batch(self, idle: float, busy: float, waiting: float = 0.0, blocked: float = 0.0) -> None:
        self.clock.now += waiting
        self.stream.queued += idle
        self.stopwatch.batch_came()
        self.stream.queued += busy
        self.stopwatch.batch_left()
        self.clock.now += blocked
        self.stopwatch.batch_taken()

    def finish(self, idle: float = 0.0) -> None:
        self.stopwatch.last_batch_left()
        self.clock.now += idle
        self.stream.queued += idle
        self.stream.done = self.stream.queued
        self.stopwatch.finish()


def test_a_devices_time_is_its_own_and_nothing_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch)
    gpu.batch(3, 2, waiting=0.9)
    gpu.batch(0.1, 0.5, waiting=0.9)
    gpu.batch(0.2, 0.5, waiting=0.9)
    assert gpu.stopwatch.read() == (0, 0, 0), "the device has done nothing yet"
    gpu.finish()
    assert gpu.stopwatch.read() == (pytest.approx(0.3), pytest.approx(1.0), 0), "1.8 s cost the device 0.3 s"


def test_a_host_that_is_far_ahead_of_a_busy_device_is_not_held_up_by_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch)
    for _ in range(5):
        gpu.batch(idle=0.01, busy=1.0, blocked=0.99)
    gpu.finish()
    waiting, forward, blocked = gpu.stopwatch.read()
    assert (waiting, forward, blocked) == (0, pytest.approx(4), pytest.approx(0.04)), "the device never stood still"


def test_a_device_that_idles_for_a_slow_disk_is_held_up_by_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch)
    for _ in range(5):
        gpu.batch(idle=0.7, busy=0.2, waiting=0.1, blocked=0.8)
    gpu.finish(idle=2)
    waiting, forward, blocked = gpu.stopwatch.read()
    assert (waiting, forward, blocked) == (pytest.approx(0.4), pytest.approx(0.8), pytest.approx(4.4))


def test_a_device_without_events_is_asked_for_the_end_of_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    def compute() -> None:
        clock.now += 2

    stopwatch = WaitingStopwatch(compute)
    for _ in range(3):
        clock.batch(stopwatch, waiting=1, forward=0, blocked=0.5)
    assert stopwatch.read() == (2, 4, pytest.approx(1.5 - 0.5 + 0.5)), "what the device computes is nobody else's time"
    assert isinstance(stopwatch_for(torch.device("mps")), WaitingStopwatch)
    assert type(stopwatch_for(torch.device("cpu"))) is Stopwatch


# --- The machine ---------------------------------------------------------------------------------------------------


class Nvml:
    """A stand-in for pynvml: two devices, of which one is a slice that does not know its use."""

    class NVMLError(Exception):
        pass

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid not in ("GPU-aaaa", "MIG-bbbb"):
            raise self.NVMLError("not found")
        return uuid

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:
        if handle.startswith("MIG"):
            raise self.NVMLError("not supported")
        return SimpleNamespace(gpu=97)

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        return SimpleNamespace(used=10, total=80)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return 412_000


def gauge_of(uuid: str, monkeypatch: pytest.MonkeyPatch) -> Gauge | None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=uuid))
    return open_gauge(torch.device("cuda", 0))


def test_the_device_is_found_by_its_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    gauge = gauge_of("aaaa", monkeypatch)
    assert gauge is not None and gauge.read() == (0.97, 10, 80, 412)


def test_a_slice_of_a_device_says_what_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    gauge = gauge_of("bbbb", monkeypatch)
    assert gauge is not None
    reading = gauge.read()
    assert str(reading.use) == "nan" and reading[1:] == (10, 80, 412)


def test_no_nvml_is_no_figures_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gauge_of("aaaa", monkeypatch) is None
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    assert gauge_of("unknown", monkeypatch) is None
    assert open_gauge(torch.device("cpu")) is None


def test_workers_are_counted_and_other_children_are_not() -> None:
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    processes = Processes()
    worker = multiprocessing.get_context("fork").Process(target=burn, daemon=True)
    worker.start()
    try:
        assert wait_for(lambda: processes.read().worker_cpu >= 0.05)
        worker.kill()
        worker.join()
        usage = processes.read()
        assert usage.worker_cpu >= 0.05, "its time is not forgotten when it ends"
        time.sleep(0.1)
        assert processes.read().worker_cpu == usage.worker_cpu, "the other child goes on burning"
        assert usage.rss_bytes > 1 << 20 and usage.memory_bytes > 1 << 20 and usage.cpu > 0
    finally:
        other.kill()
        other.wait()


def burn() -> None:
    while True:
        pass


# --- The timeline --------------------------------------------------------------------------------------------------


def test_a_line_is_of_its_interval_and_plain_json() -> None:
    before = Counters(images=100, seconds=10, waiting=1, decode=2, watched=8, cpu=3, worker_cpu=1)
    now = Counters(images=160, seconds=12, waiting=2, decode=5, watched=10, cpu=4, worker_cpu=4, device_now=0.9)
    line = line_of(before, now, workers=2)
    assert (line["images"], line["images_per_second"], line["waiting"], line["decode"]) == (60, 30, 0.5, 0.75)
    assert line["cpu"] == 2 and line["device_use"] == 0.9 and "device_watts" not in line and "pss_bytes" not in line
    assert json.loads(json.dumps(line, allow_nan=False)) == line


def test_a_long_run_makes_a_bounded_file(tmp_path: Path) -> None:
    written = Timeline(tmp_path, rank=3, workers=1)
    for second in range(1, 20_000):
        if written.due(counters := Counters(seconds=second, images=second)):
            written.write(counters)
    lines = [json.loads(line) for line in (tmp_path / "timeline/rank_00003.jsonl").read_text().splitlines()]
    assert len(lines) < 2000 and lines[0]["seconds"] == 1 and lines[-1]["seconds"] == timeline.LONGEST_INTERVAL
    assert abs(sum(line["images"] for line in lines) - 20_000) <= timeline.LONGEST_INTERVAL
    timeline.clear(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_refuses_ends_no_run(tmp_path: Path) -> None:
    meter: Any = SimpleNamespace(read=lambda ended: Counters(seconds=9))
    Watch(0, 1, meter, Progress(tmp_path / "absent"), [Timeline(tmp_path / "absent", 0, 1)], None).end()


# --- All ranks in one view -------------------------------------------------------------------------------------------


def test_rows_of_ranks_that_said_nothing_are_empty(tmp_path: Path) -> None:
    progress = Progress(tmp_path)
    progress.write(1, Counters(images=5, watts=400))
    none, one, two = progress.read(3)
    assert (none.images, one.images, one.watts, two.images, two.first) == (0, 5, 400, 0, 0)
    progress.clear()
    assert progress.read() == []


def test_a_rank_whose_figures_went_with_the_shared_folder_ends_no_run(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    monitor = Monitor([tmp_path])
    monitor.progress, monitor._bar, monitor._ranks = Progress(tmp_path, job=1), Bar(8), 2
    monitor.progress.write(0, rank(4, 2))
    monitor._bar.show(monitor.progress.read_all(2))
    shutil.rmtree(shared)  # by the job that was last to finish, before this one saw what its other rank had written
    assert [one.images for one in monitor.finish()] == [4, 0]


def rank(images: float, seconds: float, waiting: float = 0, **more: float) -> Counters:
    return Counters(images=images, seconds=seconds, first=1, waiting=waiting, **more)


def test_the_live_line_shows_what_each_gpu_does() -> None:
    now = [rank(50, 10, 2, device_now=0.97), rank(50, 10, 0, device_now=0.954), rank(50, 10, 0, device_now=UNKNOWN)]
    assert postfix([rank(10, 5), rank(10, 5), rank(10, 5)], now, 5) == "waiting 13 %, gpu 97|95|? %"


def test_the_live_line_names_idle_ranks_and_rejects() -> None:
    before, now = [rank(10, 5), rank(10, 5), rank(10, 5)], [rank(60, 10), rank(10, 10), rank(10, 10, ended=1)]
    now[0].rejects = 2
    assert postfix(before, now, 5) == "waiting 0 %, by rank 10|0|0/s, idle: rank 1, 2 rejected"
    assert "idle" not in postfix(before, now, 2), "a slow batch is not idleness"


def test_the_live_line_stays_short_with_many_ranks() -> None:
    before = [rank(0, 5) for _ in range(64)]
    assert postfix(before, [rank(5 * at, 10) for at in range(64)], 5) == "waiting 0 %, by rank 0 to 63/s, idle: rank 0"
    assert postfix(before[:1], [rank(5, 10)], 5) == "waiting 0 %", "one rank has no others to be compared with"
    assert postfix([], [], 0) == ""


@pytest.fixture(scope="module")
def two_ranks() -> tuple[Path, str]:
    """The demo on two ranks, after a run of three ranks that left timelines."""
    output = new_folder() / "output"
    typed = (f"output_dir={output}", Meeting.TYPED)
    nursery().predict(*typed, "data.limit=192", ranks=3, **Meeting(3).options).expect(0)
    assert len(list((output / "timeline").iterdir())) == 3
    return output, nursery().predict(*typed, "data.num_workers=2", ranks=2, **Meeting(2).options).expect(0).stdout


def test_every_rank_leaves_a_timeline(two_ranks: tuple[Path, str]) -> None:
    output, _ = two_ranks
    files = sorted((output / "timeline").iterdir())
    assert [path.name for path in files] == ["rank_00000.jsonl", "rank_00001.jsonl"]
    lines = [[json.loads(line) for line in path.read_text().splitlines()] for path in files]
    run = json.loads((output / "manifest.json").read_text())["run"]
    assert [sum(line["images"] for line in found) for found in lines] == run["images_by_rank"]
    assert sum(run["images_by_rank"]) == 400 - 192 and min(run["images_by_rank"]) > 0
    shares = [found[-1][name] for found in lines for name in ("waiting", "forward", "write", "decode", "read")]
    assert all(share >= 0 for share in shares) and not (output / ".progress").exists()


def test_the_manifest_keeps_the_figures_of_every_rank(two_ranks: tuple[Path, str]) -> None:
    run: dict[str, Any] = json.loads((two_ranks[0] / "manifest.json").read_text())["run"]
    assert [one["images"] for one in run["by_rank"]] == run["images_by_rank"] and run["bottleneck"]
    assert run["startup_seconds"] > 0 and 0 <= run["waiting_share"] <= 1 and run["peak_bytes"] > 1 << 26
    stages = run["stage_seconds"]
    assert {"waiting", "forward", "blocked", "read", "decode", "write"} <= stages.keys()
    assert stages["decode"] > 0 and stages["forward"] > 0 and stages["write"] > 0
    spent = sum(stages[name] for name in ("first", "waiting", "forward", "blocked"))
    assert spent == pytest.approx(sum(one["seconds"] for one in run["by_rank"]), rel=0.05, abs=0.2), (
        "all time is accounted for"
    )


def test_the_end_shows_every_rank_and_the_bottleneck(two_ranks: tuple[Path, str]) -> None:
    output, shown = two_ranks
    lines = shown.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("  rank  images"))
    run = json.loads((output / "manifest.json").read_text())["run"]
    counted, bottleneck = run["images_by_rank"], run["bottleneck"]
    assert [line.split()[:2] for line in lines[start + 1 : start + 3]] == [
        ["0", f"{counted[0]}"],
        ["1", f"{counted[1]}"],
    ]
    assert bottleneck in lines
    page = (output / "report.html").read_text()
    assert bottleneck in page and "<h2>Ranks</h2>" in page


def test_a_run_with_nothing_to_do_keeps_the_timelines(two_ranks: tuple[Path, str]) -> None:
    output, _ = two_ranks
    before = [path.read_text() for path in sorted((output / "timeline").iterdir())]
    nursery().predict(f"output_dir={output}", Meeting.TYPED, ranks=2, **Meeting(2).options).expect(0)
    assert [path.read_text() for path in sorted((output / "timeline").iterdir())] == before


def test_ranks_with_nothing_to_do_are_named() -> None:
    output = new_folder() / "output"
    shown = nursery().predict(f"output_dir={output}", "data.limit=1", ranks=2).expect(0).stdout
    assert "of 2 had nothing to do: there were only 1 images" in shown
