"""Batches in any order, from any rank, become every image exactly once."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.jobs import check_layout, identities, new_folder, snapshot
from helpers.plans import inventory
from helpers.queues import taken
from lora_clip.errors import StorageError, TooManyRejectsError
from lora_clip.loading.plan import make_plan
from lora_clip.output.housekeeping import assemble_finished, recover, tidy
from lora_clip.output.store import Store
from lora_clip.output.verify import verify
from lora_clip.output.writer import EmbeddingWriter, RangeCommitter
from lora_clip.types import EmbeddedBatch, ImageRow, Reject, WorkRange

WIDTH, BATCH = 5, 4


def batches(work: WorkRange, bad: frozenset[tuple[int, int]] = frozenset()) -> list[EmbeddedBatch]:
    """What the model makes of a work: batches of a fixed shape, padded with zeros."""
    made = []
    for start in range(work.start, work.stop, BATCH):
        stop = min(start + BATCH, work.stop)
        good = [position for position in range(start, stop) if (work.shard, position) not in bad]
        embeddings_BD = torch.zeros(BATCH, WIDTH)
        for place, position in enumerate(good):
            vector = np.random.default_rng((work.shard, position)).normal(size=WIDTH)
            embeddings_BD[place] = torch.from_numpy(vector / np.linalg.norm(vector))
        rows = [ImageRow("p", str(one), work.shard, one, 1, 1, None, None, None) for one in good]
        rejects = [
            Reject(work.shard, position, str(position), "decode", "not an image")
            for position in range(start, stop)
            if (work.shard, position) in bad
        ]
        texts_BD = -embeddings_BD[: len(rows)]
        made.append(EmbeddedBatch(embeddings_BD, rows, rejects, work, stop == work.stop, texts_BD=texts_BD))
    return made


@st.composite
def inputs(draw: st.DrawFn) -> dict[str, Any]:
    """Shards, the images that are bad, and two divisions of the work over ranks and workers."""
    sizes = draw(st.lists(st.integers(0, 17), min_size=1, max_size=5).filter(any))
    places = [(shard, position) for shard, size in enumerate(sizes) for position in range(size)]
    return {
        "sizes": sizes,
        "bad": frozenset(draw(st.sets(st.sampled_from(places)))),
        "ranks": draw(st.integers(1, 4)),
        "workers": draw(st.integers(0, 4)),
        "seed": draw(st.integers(0, 10**6)),
        "interrupted": draw(st.floats(0, 1)),
    }


def perform(root: Path, case: dict[str, Any], ranks: int, share: float, seed: int) -> None:
    """One run over what is missing, which ends after a share of its batches, workers' batches interleaved at random."""
    chance, store, stock = random.Random(seed), Store(root), inventory(*case["sizes"])
    done = {
        shard: [(entry.start, entry.stop) for entry in found]
        for shard, found in recover(store, stock.targets).committed.items()
    }
    plan = make_plan(stock, done, ranks=ranks, workers=case["workers"], batch_size=BATCH)
    committers = [RangeCommitter(Store(root), rank, plan.targets, plan.images, 1) for rank in range(ranks)]
    ranges = taken(plan, [chance.randrange(20) for _ in range(40)])
    streams = [
        (number // plan.workers, [batch for work in works for batch in batches(work, case["bad"])])
        for number, works in enumerate(ranges)
    ]
    for _ in range(int(sum(len(stream) for _, stream in streams) * share)):
        rank, stream = chance.choice([one for one in streams if one[1]])
        committers[rank].add(stream.pop(0))
    if share == 1:
        assemble_finished(store, stock.targets)


@settings(max_examples=40, deadline=None)
@given(inputs())
def test_every_image_exactly_once(case: dict[str, Any]) -> None:
    root, plain = new_folder(), new_folder()
    perform(root, case, case["ranks"], case["interrupted"], case["seed"])
    perform(root, case, 5 - case["ranks"], 1.0, case["seed"] + 1)
    wanted = [(shard, position) for shard, size in enumerate(case["sizes"]) for position in range(size)]
    assert identities(root) == wanted
    check_layout_of(root, len(wanted) - len(case["bad"]), len(case["bad"]))
    verdict = verify(root, dict(enumerate(case["sizes"])))
    assert verdict.problems == []
    assert (verdict.images, verdict.rows, verdict.rejects) == (
        len(wanted), len(wanted) - len(case["bad"]), len(case["bad"]),
    )  # fmt: skip
    perform(plain, case | {"workers": 0}, 1, 1.0, 0)
    assert snapshot(root) == snapshot(plain)
    for npy in sorted((root / "img_emb").glob("*.npy")):
        table = pq.read_table(root / "metadata" / npy.name.replace("img_emb", "metadata").replace("npy", "parquet"))
        for row, shard, position in zip(
            np.load(npy), *table.select(["shard", "position"]).to_pydict().values(), strict=True
        ):
            vector = np.random.default_rng((shard, position)).normal(size=WIDTH)
            np.testing.assert_allclose(row, vector / np.linalg.norm(vector), atol=1e-5)
        np.testing.assert_array_equal(-np.load(npy), np.load(str(npy).replace("img_emb", "text_emb")))


def check_layout_of(root: Path, rows: int, rejects: int) -> None:
    if rows:
        check_layout(root, rows, rejects)
    else:
        assert {name.split("/")[0] for name in snapshot(root)} <= {"rejects"}


def test_a_row_that_is_no_unit_vector_is_a_reject() -> None:
    store = Store(new_folder())
    [batch] = batches(WorkRange(0, 0, 4))
    batch.embeddings_BD[1] = float("nan")
    assert batch.texts_BD is not None
    batch.texts_BD[2] *= 1.5
    RangeCommitter(store, 0, {0: 4}, 4, 1).add(batch)
    tidy(store)
    check_layout(store.root, rows=2, rejects=2)
    rejects = pq.read_table(store.path("rejects", 0)).to_pydict()
    assert rejects["position"] == [1, 2] and rejects["stage"] == ["encode"] * 2
    assert rejects["error"][0] == "the embedding's norm is nan"
    assert identities(store.root) == [(0, position) for position in range(4)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.float32, 1e-4)])
def test_what_the_writer_lets_pass_verification_lets_pass(dtype: torch.dtype, tolerance: float) -> None:
    """A norm that only one of the two took for 1 would be written, refused, and kept so for ever."""
    store, offs = Store(new_folder()), [-3, -1.5, -0.5, 0, 0.5, 1.5, 3]
    embeddings_BD = torch.zeros(len(offs), WIDTH)
    embeddings_BD[:, 1] = torch.tensor([1 + off * tolerance for off in offs])
    rows = [ImageRow("p", str(one), 0, one, 1, 1, None, None, None) for one in range(len(offs))]
    work = WorkRange(0, 0, len(offs))
    committer = RangeCommitter(store, 0, {0: len(offs)}, len(offs), 1)
    committer.add(EmbeddedBatch(embeddings_BD.to(dtype), rows, [], work, True))
    verdict = verify(store.root, {0: len(offs)})
    assert verdict.problems == []
    assert (verdict.rows, verdict.rejects) == (3, 4)
    assert set(pq.read_table(store.path("rejects", 0))["stage"].to_pylist()) == {"encode"}


def test_too_many_rejects_end_the_run_and_say_why() -> None:
    store = Store(new_folder())
    committer = RangeCommitter(store, 0, {0: 40}, 40, 0.05)
    first, *others = batches(WorkRange(0, 0, 40), frozenset({(0, 1), (0, 2), (0, 5)}))
    committer.add(first)
    with pytest.raises(
        TooManyRejectsError, match=r"3 images rejected.*\(2\)(.|\n)*5 \(shard 0\): decode: not an image"
    ):
        committer.add(others[0])


def trainer_for(root: Path, sizes: dict[int, int]) -> pl.Trainer:
    """As much of a Trainer as the writer looks at."""
    plan = SimpleNamespace(share=None, targets=sizes, local=frozenset(sizes), images_each=[sum(sizes.values())])
    strategy, data = SimpleNamespace(root_device=torch.device("cpu")), SimpleNamespace(plan=plan)
    return cast(pl.Trainer, SimpleNamespace(global_rank=0, datamodule=data, strategy=strategy))


def test_what_fails_on_the_thread_is_raised_in_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    root = new_folder()
    writer, trainer = EmbeddingWriter([root], 1.0), trainer_for(root, {0: 400})

    def refuse(*_: Any) -> None:
        raise StorageError("disk full")

    monkeypatch.setattr(RangeCommitter, "add", refuse)
    module = cast(pl.LightningModule, None)
    writer.on_predict_start(trainer, module)
    with pytest.raises(StorageError, match="disk full"):
        for batch in batches(WorkRange(0, 0, 400)):
            writer.write_on_batch_end(trainer, module, {0: batch})
        writer.on_predict_end(trainer, module)
    writer._locks[0].release()


def test_the_end_waits_until_all_is_committed() -> None:
    root = new_folder()
    save(root, [*batches(WorkRange(0, 0, 300)), *batches(WorkRange(1, 0, 10))], {0: 300, 1: 10})
    check_layout(root, rows=310)


# --- The copy from a device ---


class Stream:
    """A device's stream that is as slow as it may be: what is queued is done when somebody waits for it."""

    def __init__(self) -> None:
        self.queued: list[Callable[[], object]] = []

    def event(self, **options: bool) -> SimpleNamespace:
        """An event, as torch.cuda.Event makes it."""
        assert options == {"blocking": True}, "an event that is not blocking spins a core while it is waited for"
        event = SimpleNamespace(after=None)
        event.record = lambda: setattr(event, "after", list(self.queued))
        event.synchronize = lambda: [work() for work in event.after]
        return event


class OnDevice(torch.Tensor):
    """A tensor that says it is on a GPU; it can be copied to pinned memory in its stream, and nothing else."""

    stream: Stream
    is_cuda = True

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if function is torch.empty_like:
            assert options == {"device": "cpu", "pin_memory": True}
            return torch.full(args[0].shape, torch.nan)
        if function is torch.Tensor.copy_:
            assert options == {"non_blocking": True}
            to, source = args
            source.stream.queued.append(lambda: to.copy_(source.as_subclass(torch.Tensor)))
            return to
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **options)


def test_what_comes_from_a_device_is_waited_for_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    root, plain = new_folder(), new_folder()
    stream, made = Stream(), batches(WorkRange(0, 0, 30))
    monkeypatch.setattr(torch.cuda, "Event", stream.event)
    save(plain, made, {0: 30})
    for batch in made:
        assert batch.texts_BD is not None
        batch.embeddings_BD = batch.embeddings_BD.as_subclass(OnDevice)
        batch.texts_BD = batch.texts_BD.as_subclass(OnDevice)
        batch.embeddings_BD.stream = batch.texts_BD.stream = stream
    save(root, made, {0: 30})
    assert len(stream.queued) == 2 * len(made) and snapshot(root) == snapshot(plain)


def test_what_comes_from_another_kind_of_device_is_copied_at_once() -> None:
    """MPS, say, whose tensors numpy cannot read."""
    root, (batch,) = new_folder(), batches(WorkRange(0, 0, 4))
    there = SimpleNamespace(is_cuda=False, cpu=lambda on_host=batch.embeddings_BD: on_host)
    batch.embeddings_BD = cast(torch.Tensor, there)
    save(root, [batch], {0: 4})
    check_layout(root, rows=4)


def save(root: Path, made: list[EmbeddedBatch], sizes: dict[int, int]) -> None:
    """Run the writer over the batches, to its end."""
    writer, trainer = EmbeddingWriter([root], 1.0), trainer_for(root, sizes)
    module = cast(pl.LightningModule, None)
    writer.on_predict_start(trainer, module)
    for batch in made:
        writer.write_on_batch_end(trainer, module, {0: batch})
    writer.on_predict_end(trainer, module)
    writer._locks[0].release()
    tidy(Store(root))
