"""What only a GPU can show, with whole jobs on one: fidelity, the same bytes, copies, memory, the ranks' meeting."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.images import encode, jpeg, photo
from helpers.jobs import check_layout, new_folder, predict, snapshot, start, uninterrupted, wait_for
from lora_clip.loading.direct import DirectCopies
from lora_clip.loading.ring import Ring, SharedBatch
from lora_clip.monitor.devices import open_gauge
from lora_clip.monitor.stopwatch import DeviceStopwatch
from lora_clip.output.writer import _hand_over
from lora_clip.pixels.decode import prepare
from lora_clip.pixels.nvjpeg import open_decoder
from lora_clip.pixels.on_device import decode_each, fit_on_device
from lora_clip.types import EmbeddedBatch, PreprocessSpec, WorkRange

GPU = ("trainer.accelerator=gpu", "trainer.devices=1")
SMALL_BATCHES = ("data.batch_size=8", "data.num_workers=2")
IMAGES = 400
DEVICE = torch.device("cuda", 0)


def embed(*overrides: str) -> Path:
    """The output of a job on the GPU. It is started cold: CUDA must not be forked."""
    output = new_folder() / "output"
    predict(f"output_dir={output}", *GPU, *overrides).expect(0)
    return output


def embeddings(output: Path, kind: str = "img_emb") -> np.ndarray:
    """All embeddings (N, D) of an output, float32, in the order of the input."""
    return np.concatenate([np.load(path) for path in sorted((output / kind).iterdir())]).astype(np.float32)


def lowest_cosine(one_ND: np.ndarray, other_ND: np.ndarray) -> float:
    """The smallest cosine between rows of the same number."""
    lengths_N = np.linalg.norm(one_ND, axis=1) * np.linalg.norm(other_ND, axis=1)
    return float((np.sum(one_ND * other_ND, axis=1) / lengths_N).min())


# --- Embeddings ---


@pytest.mark.parametrize(("dtype", "least"), [("float32", 0.9999), ("bfloat16", 0.999), ("float16", 0.999)])
def test_every_dtype_is_close_to_float32_on_a_cpu(dtype: str, least: float) -> None:
    """Raw, and centred: what all images share makes raw cosines look better than the differences between images are."""
    if dtype == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU does not compute in bfloat16")
    expected_ND = embeddings(uninterrupted("model.dtype=float32", "output.dtype=float32"))
    found_ND = embeddings(embed(f"model.dtype={dtype}", "output.dtype=float32"))
    mean_D = expected_ND.mean(axis=0)
    assert lowest_cosine(found_ND, expected_ND) >= least
    assert lowest_cosine(found_ND - mean_D, expected_ND - mean_D) >= least


@pytest.mark.parametrize(("dtype", "least"), [("float32", 0.9999), ("auto", 0.999)])
def test_captions_are_close_to_float32_on_a_cpu(dtype: str, least: float) -> None:
    both = ("embed=[image,text]", "output.dtype=float32")
    expected_ND = embeddings(uninterrupted(*both, "model.dtype=float32"), "text_emb")
    assert lowest_cosine(embeddings(embed(*both, f"model.dtype={dtype}"), "text_emb"), expected_ND) >= least


def test_a_compiled_model_gives_what_an_eager_one_does() -> None:
    one_ND, other_ND = (
        embeddings(embed("output.dtype=float32", f"model.compile={compiled}")) for compiled in ("false", "true")
    )
    assert lowest_cosine(one_ND, other_ND) >= 0.999


@pytest.fixture(scope="module")
def plain() -> Path:
    """What the GPU makes of the demo without workers."""
    return embed("data.batch_size=8", "data.num_workers=0")


@pytest.mark.parametrize("workers", [1, 4])
def test_the_same_bytes_on_any_number_of_workers(workers: int, plain: Path) -> None:
    output = embed("data.batch_size=8", f"data.num_workers={workers}")
    assert snapshot(output) == snapshot(plain)
    check_layout(output, rows=IMAGES)


def test_the_same_bytes_after_a_kill(plain: Path) -> None:
    output = new_folder() / "output"
    job = start(f"output_dir={output}", *GPU, *SMALL_BATCHES)
    assert wait_for(lambda: list((output / "img_emb").glob("*.npy")), pause=0.005), job.stderr
    job.signal_all(9)
    job.wait()
    predict(f"output_dir={output}", *GPU, *SMALL_BATCHES).expect(0)
    assert snapshot(output) == snapshot(plain)


def test_one_rank_of_ddp_meets_over_gloo_with_its_device_on_the_gpu(plain: Path) -> None:
    output = embed(*SMALL_BATCHES, "trainer.strategy=ddp")
    assert snapshot(output) == snapshot(plain)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_same_bytes_on_two_gpus(plain: Path) -> None:
    output = new_folder() / "output"
    predict(f"output_dir={output}", "trainer.accelerator=gpu", "trainer.devices=2", *SMALL_BATCHES).expect(0)
    assert snapshot(output) == snapshot(plain)


# --- Copies ---


def busy(milliseconds: int = 50) -> None:
    """Let the GPU work for a while, and go on at once."""
    torch.cuda._sleep(milliseconds * 1_000_000)


def test_pixels_from_the_ring_arrive_whole_while_its_buffers_are_filled_again() -> None:
    ring = Ring(1, 1, (4, 3, 64, 64))
    arrived = []
    for value in range(20):
        pinned = taken(ring, value).pin_memory()  # the next one hangs where this did not release the buffer
        assert pinned.pixels_BCHW.is_pinned()
        busy(5)
        arrived.append(pinned.to(DEVICE).pixels_BCHW)
    assert [pixels.unique().tolist() for pixels in arrived] == [[value] for value in range(20)]


def test_direct_copies_arrive_whole_while_the_ring_is_filled_again_and_the_device_computes() -> None:
    ring, copies = Ring(1, 1, (4, 3, 64, 64)), DirectCopies(DEVICE)
    copies(taken(ring, 0))  # page-locks the ring
    busy(1000)
    computed = torch.cuda.Event()
    computed.record()
    arrived = [copies(taken(ring, value)) for value in range(20)]
    assert not computed.query(), "the copies did not wait for what is computed"
    assert [batch.pixels_BCHW.unique().tolist() for batch in arrived] == [[value] for value in range(20)]


def taken(ring: Ring, value: int) -> SharedBatch:
    """A batch as it comes from a worker, full of one value."""
    pixels_BCHW, slot = ring.take(0)
    pixels_BCHW[:] = value
    return SharedBatch(pixels_BCHW, [], [], WorkRange(0, 0, 4), True, slot=slot)


def test_direct_copies_give_the_same_bytes(plain: Path) -> None:
    assert snapshot(embed(*SMALL_BATCHES, "data.copies=direct")) == snapshot(plain)


def test_the_writers_copy_is_begun_without_waiting_and_whole_after_its_event() -> None:
    for value in range(5):
        embeddings_BD, texts_BD = torch.zeros(2, 256, 512, device=DEVICE)
        torch.cuda.synchronize()
        busy(200)
        embeddings_BD += value
        texts_BD -= value
        _, batch, event = _hand_over(0, EmbeddedBatch(embeddings_BD, [], [], WorkRange(0, 0, 256), True, texts_BD))
        assert event is not None and not event.query() and batch.texts_BD is not None
        assert batch.embeddings_BD.is_pinned() and batch.texts_BD.is_pinned()
        event.synchronize()
        assert batch.embeddings_BD.unique().tolist() == [value] and batch.texts_BD.unique().tolist() == [-value]


# --- Memory and measures ---


def test_a_device_without_memory_left_is_said_with_its_status() -> None:
    free, _ = torch.cuda.mem_get_info(DEVICE)
    hog = torch.empty(max(0, free - (1 << 30)), dtype=torch.uint8, device=DEVICE)  # a gigabyte is left for the job
    outcome = predict(f"output_dir={new_folder() / 'out'}", *GPU, "data.batch_size=20000", "data.num_workers=0")
    del hog
    torch.cuda.empty_cache()
    outcome.expect(12)
    assert "out of memory" in outcome.stderr and "data.batch_size" in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_the_stopwatch_tells_the_devices_time() -> None:
    torch.cuda.synchronize()
    stopwatch = DeviceStopwatch()
    for _ in range(3):
        stopwatch.batch_came()
        busy(100)
        stopwatch.batch_left()
        stopwatch.batch_taken()
    started = time.perf_counter()
    torch.cuda.synchronize()
    passed = time.perf_counter() - started
    stopwatch.finish()
    assert passed > 0.05, "the host was ahead of the device"
    waiting, forward, blocked = stopwatch.read()
    assert forward > 0.05 and waiting + blocked < forward


def test_nvml_knows_the_device() -> None:
    pytest.importorskip("pynvml")
    gauge = open_gauge(DEVICE)
    assert gauge is not None
    reading = gauge.read()
    assert 0 < reading.used_bytes < reading.total_bytes
    assert reading.total_bytes >= torch.cuda.get_device_properties(DEVICE).total_memory * 0.9


# --- JPEGs on the device ---


def test_nvjpeg_gives_nearly_the_pixels_of_exact_and_finds_what_it_refuses() -> None:
    pytest.importorskip("torchvision")
    spec = PreprocessSpec(224, (224, 224), "bicubic", 1 / 255, (0.5,) * 3, (0.5,) * 3)
    files = [jpeg(300 + number, 260, number) for number in range(32)]
    files[3] = encode(photo(300, 200, 3).convert("L"), "JPEG")
    files[7] = files[7][:30] + b"\0" * 500  # no JPEG behind its first bytes
    decoder = open_decoder(DEVICE)
    found = decode_each(decoder, [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files])
    assert [number for number, one in enumerate(found) if one is None] == [7]
    for file, pixels_CHW in zip(files, found, strict=True):
        if pixels_CHW is not None:
            expected_CHW = torch.empty(3, 224, 224, dtype=torch.uint8)
            out_CHW = expected_CHW.to(DEVICE)
            prepare(file, spec, expected_CHW)
            fit_on_device(pixels_CHW, 1, spec, out_CHW)
            assert (out_CHW.cpu().int() - expected_CHW.int()).abs().float().mean() < 3


def test_a_job_that_decodes_on_the_gpu_gives_the_same_bytes_on_any_number_of_workers() -> None:
    pytest.importorskip("torchvision")
    first, second = (
        embed("data.decode=gpu", "data.batch_size=16", f"data.num_workers={workers}") for workers in (0, 3)
    )
    assert snapshot(first) == snapshot(second)
    assert lowest_cosine(embeddings(first), embeddings(embed("data.batch_size=16"))) >= 0.99
    check_layout(first, rows=IMAGES)
