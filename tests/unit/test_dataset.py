"""dataset: batches of one shape, every sample in one of them, from any number of workers."""

from __future__ import annotations

import io
import json
import multiprocessing
import pickle
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import psutil
import pytest
import torch
import torch.distributed as dist

from helpers import loader
from helpers.images import jpeg, png, tar_bytes, write_shards, write_tar
from helpers.loader import SPEC, module, modules, on_device, plan_of
from helpers.queues import alone
from lora_clip.errors import DataError
from lora_clip.loading.catalog import Catalog, RecordedShards
from lora_clip.loading.datamodule import EarlyBatches, PixelDataModule
from lora_clip.loading.dataset import PixelDataset
from lora_clip.loading.deal import deal
from lora_clip.loading.describe import describe
from lora_clip.loading.hands import Hands
from lora_clip.loading.plan import Inventory, Plan, make_plan, take_inventory
from lora_clip.loading.survive import Remains
from lora_clip.pixels.decode import decode, fit
from lora_clip.sources.tar import TarSource
from lora_clip.types import UNCOUNTED, PixelBatch, RawSample, WorkRange

BROKEN = jpeg(64, 64)[:-300]


def batches(folder: Path, batch_size: int, source: TarSource | None = None) -> list[PixelBatch]:
    """The batches of one process without workers."""
    source = source or TarSource(str(folder))
    return list(dataset(source, plan_of(source, 0, batch_size), batch_size))


def dataset(source: TarSource, plan: Plan, batch_size: int, **options: Any) -> PixelDataset:
    return PixelDataset(source, SPEC, batch_size, Catalog(source, plan.shards), [alone(plan)], **options)


def pixels_of(data: bytes) -> torch.Tensor:
    out_CHW = torch.zeros((3, *SPEC.crop), dtype=torch.uint8)
    fit(decode(data), SPEC, out_CHW)
    return out_CHW


def test_batches_have_one_shape_and_hold_every_image_in_order(tmp_path: Path) -> None:
    write_shards(tmp_path, [7, 0, 4], width=20, height=18)
    found = batches(tmp_path, 3)
    assert [tuple(batch.pixels_BCHW.shape) for batch in found] == [(3, 3, 16, 16)] * 5
    assert {batch.pixels_BCHW.dtype for batch in found} == {torch.uint8}
    assert [(batch.work, len(batch.rows), batch.last) for batch in found] == [
        (WorkRange(0, 0, 7), 3, False),
        (WorkRange(0, 0, 7), 3, False),
        (WorkRange(0, 0, 7), 1, True),
        (WorkRange(2, 0, 4), 3, False),
        (WorkRange(2, 0, 4), 1, True),
    ]
    rows = [row for batch in found for row in batch.rows]
    assert [(row.shard, row.position) for row in rows] == [(0, i) for i in range(7)] + [(2, i) for i in range(4)]
    assert [(row.key, row.caption) for row in rows] == [(f"{i:06d}", f"picture {i}") for i in range(11)]
    assert {(row.width, row.height) for row in rows} == {(20, 18)}
    assert rows[8].image_path == f"{tmp_path}/00002.tar/000008.jpg"
    for number, row in enumerate(rows):
        batch, place = next((b, b.rows.index(row)) for b in found if row in b.rows)
        assert torch.equal(batch.pixels_BCHW[place], pixels_of(jpeg(20, 18, number)))


def test_what_cannot_be_read_or_decoded_is_a_reject_and_takes_no_place(tmp_path: Path) -> None:
    members = {"a.jpg": jpeg(seed=1), "b.jpg": BROKEN, "c.jpg": b"", "d.png": png(seed=2), "e.jpg": b"<html>"}
    data = tar_bytes(members) + b"\xaa" * 512
    (tmp_path / "x.tar").write_bytes(data)
    (batch,) = batches(tmp_path, 8)
    assert [(row.position, row.key) for row in batch.rows] == [(0, "a"), (3, "d")]
    assert torch.equal(batch.pixels_BCHW[0], pixels_of(members["a.jpg"]))
    assert torch.equal(batch.pixels_BCHW[1], pixels_of(members["d.png"]))
    assert not batch.pixels_BCHW[2:].any(), "padding is always the same"
    assert [(reject.position, reject.key, reject.stage) for reject in batch.rejects] == [
        (1, "b", "decode"),
        (2, "c", "decode"),
        (4, "e", "decode"),
        (5, "", "read"),
    ]
    for reject, reason in zip(batch.rejects, ["truncated", "empty file", "<html>", "damaged tar"], strict=True):
        assert reason in reject.error


def test_a_batch_of_rejects_alone_still_comes(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {f"{i}.jpg": b"no" for i in range(5)})
    found = batches(tmp_path, 2)
    assert [(len(batch.rows), len(batch.rejects), batch.last) for batch in found] == [
        (0, 2, False),
        (0, 2, False),
        (0, 1, True),
    ]


def row(extras: Mapping[str, bytes], key: str = "k", path: str = "p") -> Any:
    return describe(RawSample(3, 4, key, path, b"", extras), width=5, height=6)


@pytest.mark.parametrize(
    ("extras", "caption", "url"),
    [
        ({}, None, None),
        ({"txt": b" a cat\n"}, "a cat", None),
        ({"txt": b"\xef\xbb\xbfwith a mark"}, "with a mark", None),
        ({"txt": b"", "json": b'{"caption": "from json"}'}, "from json", None),
        ({"txt": b"txt", "json": b'{"caption": "json", "url": "http://u"}'}, "txt", "http://u"),
        ({"json": b'\xef\xbb\xbf{"caption": "marked"}'}, "marked", None),
        ({"txt": b"latin \xe9"}, "latin \ufffd", None),
        ({"txt": b"nul \0 byte"}, "nul \0 byte", None),
        ({"txt": b"<script>"}, "<script>", None),
        ({"json": b'{"caption": "lone \\ud800"}'}, "lone ?", None),
        ({"json": b'{"caption": ["no text"], "url": 5}'}, None, None),
        ({"json": b"[1, 2]"}, None, None),
        ({"json": b"{"}, None, None),
        ({"json": b"[" * 100_000}, None, None),
        ({"json": b'{"n": ' + b"9" * 5000 + b"}"}, None, None),
    ],
)
def test_captions_and_metadata_are_text_whatever_they_hold(
    extras: Mapping[str, bytes], caption: str | None, url: str | None
) -> None:
    found = row(extras)
    assert (found.caption, found.url) == (caption, url)
    for text in (found.caption, found.url, found.metadata):
        assert text is None or text.encode()
    assert (found.metadata is None) == ("json" not in extras)


def test_a_huge_caption_and_names_that_are_not_utf8_are_kept_as_far_as_text_goes() -> None:
    found = row({"txt": b"long " * 2_000_000}, key="\udcff", path="/x/\udcff\ud800.jpg")
    assert len(str(found.caption)) == 10_000_000 - 1
    assert (found.key, found.image_path) == ("?", "/x/??.jpg")
    assert (found.shard, found.position, found.width, found.height) == (3, 4, 5, 6)


@pytest.mark.parametrize(
    ("rest", "message"),
    [(b"", "the file became shorter"), (b"\0" * (1 << 20), "6 images were counted in it, fewer are there now")],
    ids=["shorter", "fewer images"],
)
def test_a_tar_that_changes_while_it_is_read_is_a_data_error(tmp_path: Path, rest: bytes, message: str) -> None:
    (path,) = write_shards(tmp_path, [6], 300, 300)
    with tarfile.open(path) as tar:
        offset = tar.getmember("000005.jpg").offset
    source = TarSource(str(tmp_path))
    found = iter(dataset(source, plan_of(source, 0, 2), 2))
    next(found)
    with path.open("r+b") as file:
        file.truncate(offset)
        file.seek(offset)
        file.write(rest)
    with pytest.raises(DataError, match=rf"00000\.tar.*{message}"):
        list(found)


# --- workers ---


Seen = dict[tuple[int, int], tuple[str, str | None, bytes]]


def seen(found: Iterator[PixelBatch] | Any) -> Seen:
    """Every image and reject by its identity, with all that is said of it; twice the same is an error."""
    samples: Seen = {}
    for batch in found:
        for place, one in enumerate(batch.rows):
            assert (one.shard, one.position) not in samples
            pixels = batch.pixels_BCHW[place].numpy().tobytes()
            samples[one.shard, one.position] = (one.key, one.caption, pixels)
        for reject in batch.rejects:
            assert (reject.shard, reject.position) not in samples
            samples[reject.shard, reject.position] = (reject.key, reject.error, b"")
        batch.release()
    return samples


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_any_number_of_ranks_and_workers_gives_the_same_samples(tmp_path: Path) -> None:
    write_shards(tmp_path, [5, 0, 9])
    write_tar(tmp_path / "00009.tar", {"a.jpg": jpeg(), "b.jpg": BROKEN, "c.jpg": jpeg(seed=5)})
    source = TarSource(str(tmp_path))
    alone = seen(batches(tmp_path, 4))
    assert len(alone) == 17
    for ranks, workers in [(1, 0), (1, 1), (1, 2), (1, 4), (2, 2), (3, 3)]:
        plan = plan_of(source, workers, 4, ranks)
        together = [seen(rank.predict_dataloader()) for rank in modules(source, plan, workers, 4)]
        assert sum(map(len, together)) == 17
        assert {identity: sample for one in together for identity, sample in one.items()} == alone


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_rank_with_fewer_cores_than_rank_0_starts_the_workers_of_the_plan(tmp_path: Path) -> None:
    write_shards(tmp_path, [9, 9])
    source = TarSource(str(tmp_path))
    plan = plan_of(source, 3, 2)
    assert len(seen(module(source, plan, 1, 2).predict_dataloader())) == 18


def test_a_job_with_nothing_to_do_starts_no_worker(tmp_path: Path) -> None:
    write_shards(tmp_path, [2])
    source = TarSource(str(tmp_path))
    plan = make_plan(take_inventory(source), {0: [(0, 2)]}, ranks=2, workers=2, batch_size=4)
    loaders = [made.loader(Remains(), Hands(0)) for made in modules(source, plan, 2, 4)]
    assert [(loader.num_workers, list(loader)) for loader in loaders] == [(0, []), (0, [])]


def test_a_job_of_one_rank_keeps_its_plan(tmp_path: Path) -> None:
    write_shards(tmp_path, [2])
    source = TarSource(str(tmp_path))
    made = PixelDataModule(source, SPEC, 4, 0)
    made.plan = plan = plan_of(source, 0, 4)
    made.setup("predict")
    assert made.plan is plan


def deal_as_a_rank(rank: int, meeting: str, plan: Plan, heard: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    received, counters, served = deal(plan if rank == 0 else None)
    heard.put((rank, received, received.shards[1].path, counters.add(3, 1)))
    dist.barrier()
    del served
    dist.destroy_process_group()


def test_every_rank_receives_the_plan_without_the_names_in_its_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, [3, 4])
    source = TarSource(str(tmp_path))
    plan = plan_of(source, 0, 4, ranks=2)
    written = tmp_path / "inputs.jsonl"
    written.write_text("".join(json.dumps(one.to_json()) + "\n" for one in plan.shards.values()))
    plan = replace(plan, shards=RecordedShards.of(written))
    assert str(tmp_path / "0").encode() not in pickle.dumps(plan)
    context = multiprocessing.get_context("fork")
    heard = context.SimpleQueue()
    ranks = [
        context.Process(target=deal_as_a_rank, args=(rank, str(tmp_path / "meeting"), plan, heard)) for rank in (0, 1)
    ]
    for process in ranks:
        process.start()
    received = sorted(heard.get() for _ in ranks)
    for process in ranks:
        process.join()
    assert [dict(found.shards) == dict(plan.shards) for _, found, *_ in received] == [True, True]
    assert [(found.gaps, found.runs, path) for _, found, path, _ in received] == [
        (plan.gaps, plan.runs, f"{tmp_path}/00001.tar")
    ] * 2
    assert sorted(before for *_, before in received) == [0, 1], "they share the counters"


def test_without_a_shared_folder_a_rank_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="all nodes of a job need one output_dir"):
        RecordedShards(tmp_path / "inputs.jsonl", {0: 0})[0]


def test_a_shard_that_nobody_has_counted_is_counted_by_whoever_takes_it(tmp_path: Path) -> None:
    write_shards(tmp_path, [5, 3])
    source = TarSource(str(tmp_path))
    shards = {shard.id: shard for shard in source.shards([])}
    assert {shard.images for shard in shards.values()} == {UNCOUNTED}
    inventory = Inventory(list(shards.values()), dict.fromkeys(shards, UNCOUNTED))
    plan = make_plan(inventory, {}, ranks=1, workers=0, batch_size=4)
    found = list(module(source, plan, 0, 4).predict_dataloader())
    assert [(batch.work, batch.counted and batch.counted["images"]) for batch in found] == [
        (WorkRange(0, 0, 5), None),
        (WorkRange(0, 0, 5), 5),
        (WorkRange(1, 0, 3), 3),
    ]
    files = sum(Path(shard.path).stat().st_size for shard in shards.values())
    assert abs(sum(batch.bytes for batch in found) - files) < 4, "the bytes of all batches are those of the files"


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True), ("mps", False)])
def test_memory_is_pinned_for_the_device_in_use_whatever_else_the_machine_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, pinned: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device != "cuda")
    write_shards(tmp_path, [2])
    source = TarSource(str(tmp_path))
    made = module(source, plan_of(source, 1, 4), 1, 4)
    made.trainer = on_device(device)
    assert made.loader(Remains(), Hands(1)).pin_memory is pinned


class Late(pl.LightningModule):
    """A model that is there once both workers are at work."""

    def configure_model(self) -> None:
        assert len(multiprocessing.active_children()) == 2, "workers are to decode while the model is loaded"

    def predict_step(self, batch: PixelBatch, batch_idx: int) -> None:
        self.images = getattr(self, "images", 0) + len(batch.rows)
        batch.release()


@pytest.mark.filterwarnings("ignore:.*predict returned None", "ignore:.*LeafSpec", "ignore:This DataLoader will create")
def test_workers_begin_before_the_model_is_loaded_and_only_once(tmp_path: Path) -> None:
    write_shards(tmp_path, [5, 5])
    source = TarSource(str(tmp_path))
    made = PixelDataModule(source, SPEC, 4, 2)
    made.plan = plan_of(source, 2, 4)
    quiet: Any = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(accelerator="cpu", callbacks=[EarlyBatches()], **quiet)
    model = Late()
    trainer.predict(model, datamodule=made, return_predictions=False)
    assert model.images == 10
    assert not multiprocessing.active_children()


def test_an_error_in_a_worker_arrives_with_its_kind_and_words(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, [3])
    source = TarSource(str(tmp_path))
    plan = plan_of(source, 1, 2)
    path.unlink()
    with pytest.raises(DataError, match=r"cannot read shard .*00000\.tar: No such file"):
        list(module(source, plan, 1, 2).predict_dataloader())


@pytest.mark.slow
def test_workers_end_when_the_main_process_is_killed(tmp_path: Path) -> None:
    """Also those that wait for room in the pipe to it, which long captions fill: PyTorch's own watch forgets these."""
    image, text = jpeg(), b"x" * 20_000
    write_tar(
        tmp_path / "x.tar",
        {f"{i:03d}.{e}": (image if e == "jpg" else text) for i in range(400) for e in ("jpg", "txt")},
    )
    command = [sys.executable, str(Path(loader.__file__)), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as main:
        assert isinstance(main.stdout, io.BufferedReader)
        workers = [psutil.Process(int(pid)) for pid in main.stdout.readline().split()]
        time.sleep(1)
        assert len(workers) == 2 and all(map(running, workers))
        main.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 8
    while any(map(running, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = [worker for worker in workers if running(worker)]
    for worker in left:
        worker.kill()
    assert not left


def running(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
