"""What a job costs before its first image and after its last, over many shards: made-up ones, measured on this machine.

python scripts/scale.py shards 1000 10000 100000     outputs of 10,000 rows a shard: planning, resuming, verifying
python scripts/scale.py folder 1000000               names of so many files in a folder: listing, planning, sending
python scripts/scale.py store 1 2 4 8                requests a second of the counters' store, by asking processes
python scripts/scale.py start                        1,000,000 images in 200 tars against 1,000 in one
python scripts/scale.py command 5                    the same of the whole command, so many times by turns

Tars are sparse files and the outputs' files hard links to a few, so that a billion rows fit on a small disk. Each case
runs in a process of its own: seconds (of its CPU, and by the clock) of each step, and the most memory held so far.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import psutil

from lora_clip.app import planning
from lora_clip.loading.counters import serve_counters
from lora_clip.loading.plan import Plan, make_plan
from lora_clip.monitor.progress import Progress
from lora_clip.output import provenance
from lora_clip.output.layout import Layout
from lora_clip.output.ledger import CommittedRange
from lora_clip.output.session import OutputSession
from lora_clip.output.snapshot import Snapshot
from lora_clip.output.tables import METADATA_SCHEMA, row_table, write_table
from lora_clip.output.verify import verify
from lora_clip.sources.base import Source
from lora_clip.sources.folder import FolderSource
from lora_clip.sources.seek_points import text_of
from lora_clip.sources.tar import TarSource
from lora_clip.types import ImageRow

ROWS, WIDTH = 10_000, 512
TAR_BYTES = 300_000_000
RANKS = 64
LINKS = 30_000
"""Names of one file: file systems allow some ten thousands."""
FULLY = 200
"""Shards that are verified with all their bytes; the time for more is reckoned from these."""
FINGERPRINT = {"made": "up"}
SECONDS = 3.0


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*CASES, *BY_NAME])
    parser.add_argument("sizes", type=int, nargs="*")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where to make things up")
    given = parser.parse_args()
    if given.what in BY_NAME:
        BY_NAME[given.what](given.folder, *given.sizes)
        return
    for size in given.sizes:
        CASES[given.what](given.folder, size)


# --- shards ---


def shards(folder: Path, count: int) -> None:
    """A fresh job, one that was cut off at half, and a finished output, each in a process of its own."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="scale-") as made:
        tars, output = Path(made, "tars"), Path(made, "output")
        make_tars(tars, count)
        for case, done in (("fresh", 0), ("half", count // 2), ("finished", count)):
            make_output(output, tars, count, done)
            _alone(f"{count:,} shards, {case}", case, output, tars)
            shutil.rmtree(output)


def make_tars(folder: Path, count: int) -> None:
    """A real tar of one image, and then sparse files."""
    folder.mkdir()
    with tarfile.open(folder / "000000.tar", "w") as tar:
        _add(tar, "000000000.jpg", b"no image, but named like one")
    for number in range(1, count):
        with (folder / f"{number:06d}.tar").open("wb") as file:
            file.truncate(TAR_BYTES + number)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def make_output(root: Path, tars: Path, count: int, done: int) -> None:
    """An output of which the first `done` shards are committed; without any there is none."""
    if not done:
        return
    layout = Layout(root)
    root.mkdir()
    provenance.write_fingerprint(root, FINGERPRINT)
    provenance.write_inputs(root, (_record(tars, number) for number in range(count)))
    checksums, sizes = _link_files(layout, done)
    (root / "ranks").mkdir()
    for rank in range(RANKS):
        mine = range(rank, done, RANKS)
        entries = [
            CommittedRange(n, 0, ROWS, ROWS, 0, checksums, True, 9.5, f"2026-01-01T{n:09d}", sizes) for n in mine
        ]
        text = "".join(json.dumps(vars(entry)) + "\n" for entry in entries)
        (root / "ranks" / f"rank_{rank:05d}.jsonl").write_text(text)
    if done == count:
        (root / "manifest.json").write_text(json.dumps({"format": "lora_clip 2", "rows": ROWS * count}))


def _record(tars: Path, number: int) -> dict[str, Any]:
    path = tars / f"{number:06d}.tar"
    points = text_of((at, at * 30_000) for at in range(0, ROWS, 256))
    state = {"stamp": [path.stat().st_size, path.stat().st_mtime_ns], "seek_points": points, "scattered": False}
    about = {
        "id": number,
        "kind": "tar",
        "path": str(path),
        "images": ROWS,
        "bytes": TAR_BYTES,
        "digest": f"{number:064d}",
    }
    return {**about, "extensions": {"jpg": ROWS}, "left_out": {}, "state": state, "wanted": ROWS}


def _link_files(layout: Layout, done: int) -> tuple[dict[str, str], dict[str, int]]:
    """The files of the shards: a few real ones, sound in themselves, under many names."""
    contents = {"metadata": _metadata(), "img_emb": _embeddings()}
    for kind, content in contents.items():
        (layout.root / kind).mkdir()
        for number in range(done):
            path = layout.path(kind, number)
            if number % LINKS:
                path.hardlink_to(layout.path(kind, number - number % LINKS))
            else:
                path.write_bytes(content)
    sums = {kind: sha256(content).hexdigest() for kind, content in contents.items()}
    return sums, {kind: len(content) for kind, content in contents.items()}


def _metadata() -> bytes:
    file = io.BytesIO()
    rows = [ImageRow(f"/data/{n:09d}.jpg", f"{n:09d}", 0, n, 500, 375, "a caption", None, None) for n in range(ROWS)]
    write_table([row_table(rows)], METADATA_SCHEMA, file)
    return file.getvalue()


def _embeddings() -> bytes:
    file = io.BytesIO()
    rows_ND = np.random.default_rng(0).standard_normal((ROWS, WIDTH), np.float32)
    np.save(file, (rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)).astype(np.float16))
    return file.getvalue()


def _alone(title: str, case: str, *paths: Path) -> None:
    """Run a case in a process of its own, so that its peak of memory is its own."""
    print(f"\n{title}", flush=True)
    command = [
        sys.executable,
        "-c",
        f"import scale; from pathlib import Path; scale.{case}(*map(Path, {[*map(str, paths)]}))",
    ]
    subprocess.run(command, cwd=Path(__file__).parent, check=True)


@contextmanager
def step(name: str) -> Iterator[None]:
    """Tell what a step took."""
    cpu, clock = time.process_time(), time.perf_counter()
    yield
    cpu, clock = time.process_time() - cpu, time.perf_counter() - clock
    print(f"  {name:<34} {cpu:8.2f} s CPU {clock:8.2f} s {_peak():8,.0f} MiB at most so far", flush=True)


def _peak() -> float:
    """MiB that this program held at most; `getrusage` would tell of what its parent held too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def fresh(root: Path, tars: Path) -> None:
    """A job from nothing to the plan that is sent."""
    _begin(root, TarSource(str(tars)))


def half(root: Path, tars: Path) -> None:
    """The same after half was done."""
    _begin(root, TarSource(str(tars)))


def _begin(root: Path, source: Source) -> None:
    with step("imports"):
        pass
    with step("snapshot of the output"):
        session = OutputSession(root, resume=True).__enter__()
    with step("survey: list, compare"):
        one = planning.survey(cast(Any, None), session, FINGERPRINT, source, None, ())
    with step("begin and recover"):
        done = planning.begin(one, one.inventory)
    with step("plan"):
        plan = make_plan(one.inventory, done, ranks=RANKS, workers=16, batch_size=256)
    with step("write down what is sent"):
        sent = pickle.dumps(_to_send(plan, root))
    print(f"  {len(plan.gaps):,} gaps; {len(sent) / 2**20:.2f} MiB are sent to each rank")
    session.__exit__(None, None, None)


def _to_send(plan: Plan, root: Path) -> Plan:
    job = planning.Job([cast(Any, _Rooted(root))], cast(Any, None), plan, cast(Any, _Ranks()), 0)
    return job.to_send()


class _Ranks:
    ranks = RANKS


class _Rooted:
    def __init__(self, root: Path) -> None:
        self.session = self
        self.root = root


def finished(root: Path, tars: Path) -> None:
    """The same command again over a finished output: by presence; and some of it verified in full."""
    with step("imports"):
        pass
    with step("snapshot of the output"):
        session = OutputSession(root, resume=True).__enter__()
    with step("survey: list, compare"):
        one = planning.survey(cast(Any, None), session, FINGERPRINT, TarSource(str(tars)), None, ())
    with step("begin and recover"):
        planning.begin(one, one.inventory)
    with step("conclude: verify by presence"):
        verdict = session.conclude(one.wanted, embedded=False)
    print(f"  {'sound' if verdict.sound else verdict.problems[:3]}: {verdict.rows:,} rows, {verdict.shards:,} shards")
    session.__exit__(None, None, None)
    _verify_some(root, one.wanted, session.snapshot)


def _verify_some(root: Path, wanted: Mapping[int, int], now: Snapshot) -> None:
    """All shards by presence, and again with some read in full: the difference is what reading a shard takes."""
    few = set(list(wanted)[:FULLY])
    seconds = []
    for name, proven in (("none", wanted.keys()), (f"{len(few)}", wanted.keys() - few)):
        before = time.process_time()
        with step(f"verify all, {name} in full"):
            verify(root, wanted, now, proven)
        seconds.append(time.process_time() - before)
    each = (seconds[1] - seconds[0]) / len(few)
    total = each * len(wanted) + seconds[0]
    print(f"  about, for all in full: {total:,.0f} s of CPU time ({1e3 * each:.1f} ms a shard)")


# --- folder ---


def folder_of(folder: Path, count: int) -> None:
    """So many files, empty ones, in folders of a thousand: a fresh job, and the same command again."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="scale-") as made:
        files, output = Path(made, "files"), Path(made, "output")
        for number in range(count):
            if not number % 1000:
                (holder := files / f"{number // 1000:06d}").mkdir(parents=True)
            (holder / f"photograph-{number:09d}.jpg").touch()
        _alone(f"{count:,} files in a folder, fresh", "files", output, files)


def files(root: Path, folder: Path) -> None:
    """A job over a folder from nothing to the plan that is sent."""
    _begin(root, FolderSource(str(folder)))


# --- the store ---


def store(folder: Path, *clients: int) -> None:
    """Requests a second of one store, which all its clients together get."""
    served, counters = serve_counters()
    context = multiprocessing.get_context("fork")
    for number in clients or (1, 2, 4, 8):
        told = context.SimpleQueue()
        asking = [context.Process(target=_ask, args=(counters, told)) for _ in range(number)]
        for one in asking:
            one.start()
        asked = sum(told.get() for _ in asking)
        for one in asking:
            one.join()
        print(f"{number:4} processes: {asked / SECONDS:10,.0f} requests a second", flush=True)
    del served


def _ask(counters: Any, told: Any) -> None:
    counters.add(0, 1)
    asked, until = 0, time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        counters.add(0, 1)
        asked += 1
    told.put(asked)


# --- start ---


def start(folder: Path, images: int = 1_000_000, tars: int = 200) -> None:
    """From the listing to the first batch's work, and the shard counted that it lies in."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="scale-") as made:
        many, one = Path(made, "many"), Path(made, "one")
        for place, count in ((many, tars), (one, 1)):
            place.mkdir()
            each = images // tars if place == many else 1000
            for number in range(count):
                _tiny_tar(place / f"{number:06d}.tar", number * each, each)
        for _ in range(3):
            _alone(f"{images:,} images in {tars} tars", "first", Path(made, "output"), many)
            _alone("1,000 images in one", "first", Path(made, "output"), one)


def _tiny_tar(path: Path, first: int, count: int) -> None:
    image = _tiny()
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + count):
            _add(tar, f"{number:09d}.jpg", image)


def _tiny() -> bytes:
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 255, (24, 24, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()


def first(root: Path, tars: Path) -> None:
    """A fresh job up to the pixels of its first batch, in this process."""
    from lora_clip.loading.catalog import Catalog
    from lora_clip.loading.counters import SharedMemory
    from lora_clip.loading.queue import Indices, SharedQueue
    from lora_clip.types import WorkRange

    source = TarSource(str(tars))
    with step("start"), OutputSession(root, resume=True) as session:
        one = planning.survey(cast(Any, None), session, FINGERPRINT, source, None, ())
        plan = make_plan(one.inventory, planning.begin(one, one.inventory), ranks=1, workers=1, batch_size=256)
        catalog = Catalog(source, plan.shards)
        queue = SharedQueue(plan, SharedMemory(len(Indices(plan))), 0, 0, catalog.images)
        work = queue.next()
        assert work is not None
        batch = WorkRange(work.shard, work.start, work.start + 256)
        assert len(list(source.read(catalog[work.shard], batch))) == 256
    shutil.rmtree(root)


# --- the whole command ---


def command(folder: Path, repeats: int = 5, images: int = 1_000_000, tars: int = 200) -> None:
    """Seconds from the start of `predict.py` to its first batch through the model, both inputs by turns."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="scale-") as made:
        inputs = {f"{images:,} images in {tars} tars": (tars, images // tars), "1,000 images in one": (1, 1000)}
        for name, (count, each) in inputs.items():
            (place := Path(made, name)).mkdir()
            _tiny_tar(place / "000000.tar", 0, each)
            for number in range(1, count):
                (place / f"{number:06d}.tar").hardlink_to(place / "000000.tar")
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in inputs}
        for name in [*inputs] * (repeats + 1):
            found[name].append(_first_batch(Path(made, name), Path(made, "output")))
        for what, part in (("s to the first batch", 0), ("s of the main process's CPU until then", 1)):
            # the first of each finds nothing in memory
            many, few = (sorted(one[part] for one in measured[1:]) for measured in found.values())
            for name, seconds in zip(inputs, (many, few), strict=True):
                print(f"{name}: {', '.join(f'{one:.2f}' for one in seconds)} {what}")
            print(f"median {median(many) / median(few):.3f} x, least {many[0] / few[0]:.3f} x")


def _first_batch(tars: Path, output: Path) -> tuple[float, float]:
    """Seconds as the job itself tells them, while it runs or at its end, and of its main process's CPU; then end it."""
    shutil.rmtree(output, ignore_errors=True)
    typed = ["data=shards", f"data.shards='{tars}'", f"output_dir={output}", "max_reject_fraction=1"]
    program = Path(__file__).parent.parent / "predict.py"
    with subprocess.Popen(
        [sys.executable, program, *typed], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as job:
        watched, cpu, told = psutil.Process(job.pid), 0.0, Progress(output).read()
        while job.poll() is None and not any(rank.startup for rank in told):
            time.sleep(0.02)
            with suppress(psutil.Error):
                cpu = sum(watched.cpu_times()[:2]) or cpu
            told = Progress(output).read()
        if told and told[0].startup:
            os.killpg(job.pid, signal.SIGKILL)
            return told[0].startup, cpu
    return float(json.loads((output / "manifest.json").read_text())["run"]["startup_seconds"]), cpu


CASES: dict[str, Callable[[Path, int], None]] = {"shards": shards, "folder": folder_of}
BY_NAME: dict[str, Callable[..., None]] = {"store": store, "start": start, "command": command}

if __name__ == "__main__":
    main()
