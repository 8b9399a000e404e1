"""The bottleneck: for each thing that may be it, the words say it, and advise what would help and nothing else."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lora_clip.diagnose.bottleneck import diagnose
from lora_clip.diagnose.figures import Figures, gather, record
from lora_clip.monitor.meter import Machine
from lora_clip.monitor.progress import Counters

NAN = math.nan
GPU: dict[str, Any] = {
    "device": "cuda", "dtype": "bfloat16", "cores": 16, "gpus": 1, "local_ranks": 1, "workers": 8, "batch_size": 64,
    "decode": "exact", "threads": 16, "fast_bfloat16": True, "startup": 9.0, "waiting": 0.0, "forward": 0.95,
    "blocked": 0.0, "writing": 0.1, "reading": 0.05, "decoding": 0.3, "cpu": 0.1, "worker_cpu": 0.3, "machine_cpu": NAN,
    "pixels": 180_000.0, "filled": 0.98, "device_memory": 0.2, "images_by_rank": (50_000,), "seconds_by_rank": (60.0,),
}  # fmt: skip
STARVED = GPU | {"waiting": 0.7, "forward": 0.29, "decoding": 0.9}
CPU: dict[str, Any] = GPU | {
    "device": "cpu", "dtype": "float32", "cores": 4, "gpus": 0, "workers": 4, "threads": 4, "waiting": 0.1,
    "forward": 0.85, "decoding": 0.3, "cpu": 0.7, "worker_cpu": 0.25, "device_memory": NAN,
}  # fmt: skip


def told(base: dict[str, Any], **more: Any) -> str:
    return diagnose(Figures(**(base | more)))


def test_nothing_embedded_has_no_bottleneck() -> None:
    assert told(GPU, images_by_rank=(0,), seconds_by_rank=(0.0,)) == ""


def test_a_short_run_tells_its_start_and_advises_nothing() -> None:
    said = told(GPU, startup=5.6, seconds_by_rank=(0.3,))
    assert said == "too short to name a bottleneck: 5.6 s until the first batch was through, then 0.3 s"


def test_decoding_bound_with_free_cores_advises_workers() -> None:
    assert told(STARVED) == (
        "decoding was the bottleneck: the device waited 71 % of the time; 8 of 16 cores decode; try data.num_workers=14"
    )


def test_no_more_workers_are_advised_than_keep_the_device_busy() -> None:
    assert told(STARVED, forward=0.75, workers=4, cores=64).endswith("try data.num_workers=6")


def test_cores_are_shared_by_the_ranks_of_a_node() -> None:
    many = {"local_ranks": 4, "gpus": 4, "workers": 2, "images_by_rank": (9,) * 4, "seconds_by_rank": (60.0,) * 4}
    assert "8 of 16 cores decode; try data.num_workers=3" in told(STARVED, **many)


def test_decoding_in_the_ranks_own_process_advises_workers() -> None:
    assert "no core but the rank's own decodes; try data.num_workers=4" in told(STARVED, workers=0)


def test_decoding_bound_on_all_cores_advises_cores_only() -> None:
    said = told(STARVED, workers=16)
    assert said.startswith(
        "the cores were the bottleneck: the device waited 71 % of the time, with 16 workers on 16 cores"
    )
    assert said.endswith("only more cores help") and "try" not in said


def test_large_photographs_are_named() -> None:
    assert "12.0 megapixels): try data.decode=fast" in told(STARVED, workers=16, pixels=12e6)
    assert "12.0 megapixels): smaller copies" in told(STARVED, workers=16, pixels=12e6, decode="fast")
    assert "megapixels" not in told(STARVED, pixels=12e6), "there are cores left: workers come first"


def test_storage_bound_advises_storage_and_readers() -> None:
    said = told(STARVED, reading=0.7, decoding=0.2)
    assert said.startswith(
        "reading was the bottleneck: the device waited 71 % of the time, and the workers waited for storage 70"
    )
    assert said.endswith("data.num_workers=16")


def test_idle_workers_and_an_idle_device_blame_what_lies_between() -> None:
    assert told(STARVED, decoding=0.2, decode="gpu").startswith("decoding on the GPU was the bottleneck")
    said = told(STARVED, decoding=0.2)
    assert said.startswith("neither the GPU nor decoding") and said.endswith("try data.batch_size=256")
    assert "try" not in told(STARVED, decoding=0.2, batch_size=512)


def test_a_busy_gpu_in_float32_advises_what_auto_is() -> None:
    assert told(GPU, dtype="float32").endswith("95 % of the time, in float32; try model.dtype=float16")


def test_a_busy_gpu_with_memory_left_advises_a_larger_batch() -> None:
    assert "the GPU was the bottleneck: it computed 95 % of the time; try data.batch_size=256" in told(GPU)


def test_a_busy_gpu_with_half_empty_batches_advises_smaller_ones() -> None:
    said = told(GPU, filled=0.39, batch_size=256)
    assert said.endswith(
        "only 39 % of its batches were images, since shards end within one; try data.batch_size=100, or larger shards"
    )
    assert "batch_size=100" not in told(CPU, filled=0.39, batch_size=256), "a CPU computes no padding"


@pytest.mark.parametrize("full", [{"batch_size": 256}, {"device_memory": 0.8}])
def test_a_busy_gpu_at_its_best_advises_more_gpus(full: dict[str, Any]) -> None:
    said = told(GPU, **full)
    assert "only more GPUs" in said and "batch_size" not in said


def test_a_slow_disk_below_the_output() -> None:
    said = told(STARVED, writing=0.97, blocked=0.6)
    assert said.startswith(
        "writing was the bottleneck: the writer was busy 97 % of the time and held the model up for 60 %"
    )
    assert "writing" not in told(STARVED, writing=0.97, blocked=0.01), "a busy writer that nobody waits for"


def test_a_busy_gpu_whose_host_stands_in_the_writers_queue_is_what_bound_it() -> None:
    queueing = {"blocked": 0.9, "batch_size": 256}
    for writing in (0.1, 0.9):
        assert told(GPU, writing=writing, **queueing).startswith(
            "the GPU was the bottleneck: it computed 95 % of the time"
        )
    said = told(GPU, forward=0.3, writing=0.95, **queueing)
    assert said.startswith(
        "writing was the bottleneck: the writer was busy 95 % of the time and held the model up for 70 %"
    )


def test_a_cpu_whose_cores_are_used_up_says_by_what() -> None:
    said = told(CPU, cpu=0.25, worker_cpu=0.7)
    assert said == (
        "the cores were the bottleneck: decoding took 70 % of their time, the forward 25 %; only more cores help"
    )


def test_a_cpu_that_computes_bfloat16_is_advised_to() -> None:
    assert told(CPU).endswith("the forward 70 %; try model.dtype=bfloat16, which this CPU computes faster")
    for at_best in ({"dtype": "bfloat16"}, {"fast_bfloat16": False}):
        assert told(CPU, **at_best).endswith("only more cores or a GPU help")


def test_a_cpu_that_decodes_large_photographs() -> None:
    assert "try data.decode=fast" in told(CPU, cpu=0.1, worker_cpu=0.85, pixels=9e6)


def test_a_forward_that_leaves_cores_idle_advises_threads() -> None:
    said = told(CPU, threads=1, cpu=0.25, worker_cpu=0.05)
    assert said == "the forward was the bottleneck: it took 85 % of the time, on 1 of 4 cores; try OMP_NUM_THREADS=4"


def test_a_forward_whose_threads_wait_for_one_another_advises_more_ranks() -> None:
    said = told(CPU, cpu=0.4, worker_cpu=0.1)
    assert "85 % of the time and kept 50 % of 4 cores busy; try trainer.devices=2: " in said
    assert told(CPU, cpu=0.4, worker_cpu=0.1, local_ranks=4, threads=1).endswith("kept 50 % of 4 cores busy")


def test_a_cpu_with_too_few_workers() -> None:
    said = told(CPU, waiting=0.8, forward=0.1, decoding=0.95, workers=1, cpu=0.1, worker_cpu=0.25)
    assert said == (
        "decoding was the bottleneck: the model waited 80 % of the time; 1 of 4 cores decode; try data.num_workers=4"
    )


def test_a_cpu_that_waits_for_storage() -> None:
    said = told(CPU, waiting=0.8, forward=0.1, reading=0.8, decoding=0.1, cpu=0.1, worker_cpu=0.1)
    assert said.startswith("reading was the bottleneck: the model waited 80 % of the time")


def test_a_machine_that_others_use_too() -> None:
    waiting = {"waiting": 0.8, "forward": 0.1, "decoding": 0.9, "cpu": 0.1, "worker_cpu": 0.3}
    assert told(CPU, **waiting, machine_cpu=0.95) == (
        "other programs were the bottleneck: they took 55 % of the cores, this job kept 40 % of 4 cores busy"
    )
    assert told(CPU, **waiting) == (
        "decoding was the bottleneck: the model waited 80 % of the time, while the job kept 40 % of 4 cores busy"
    )
    assert told(CPU, cpu=0.6, worker_cpu=0.2, machine_cpu=0.98).endswith(
        ". other programs: they took 18 % of the cores"
    )
    assert "other programs" not in told(CPU, machine_cpu=0.99), "a little is no matter"
    assert told(STARVED, machine_cpu=0.9).endswith(". other programs: they took 50 % of the cores")


def test_a_cpu_without_workers_takes_turns() -> None:
    said = told(CPU, workers=0, waiting=0.4, forward=0.58, decoding=0.4, cpu=0.6, worker_cpu=0.0)
    assert "took turns (40 % and 58 % of the time) and used 60 % of 4 cores; try data.num_workers=4" in said
    assert told(CPU, workers=0, cores=1, waiting=0.4, forward=0.6, decoding=0.4, cpu=1.0, worker_cpu=0.0) == (
        "the cores were the bottleneck: decoding took 40 % of their time, the forward 60 %; "
        "try model.dtype=bfloat16, which this CPU computes faster"
    )


def test_idle_ranks_are_named() -> None:
    many = {"local_ranks": 4, "gpus": 4, "seconds_by_rank": (9.0, 9.0, 0.0, 0.0)}
    said = told(GPU, images_by_rank=(64, 32, 0, 0), **many)
    assert said.endswith(
        "ranks 2, 3 of 4 had nothing to do: 96 images are too few batches of 64; try data.batch_size=24"
    )
    assert told(GPU, images_by_rank=(1, 1, 0, 0), **many).endswith("nothing to do: there were only 2 images")


def test_gpus_without_a_rank_are_named() -> None:
    assert told(GPU, gpus=4).endswith("3 of 4 GPUs were not used: try trainer.devices=4 (torchrun: --nproc_per_node=4)")
    assert told(CPU, gpus=1).endswith("the GPU was not used: leave trainer.accelerator out")


def test_a_rank_that_takes_longer_than_the_others_is_named() -> None:
    four = {"local_ranks": 4, "gpus": 4, "images_by_rank": (9, 9, 9, 9)}
    said = told(GPU, seconds_by_rank=(60.0, 61.0, 130.0, 60.0), **four)
    assert "rank 2 took 130 s, the others about 60" in said
    assert "rank" not in told(GPU, seconds_by_rank=(60.0, 61.0, 66.0, 60.0), **four)


def test_figures_come_from_the_ranks_that_worked() -> None:
    worked = Counters(images=90, batches=2, pixels=400, startup=4, seconds=11, first=1, waiting=5, forward=4, blocked=1,
                      read=2.2, decode=4.4, write=3, watched=8, cpu=4, worker_cpu=12, machine_cpu=24)  # fmt: skip
    machine = Machine("cpu", cores=4, gpus=0, local_ranks=2, threads=2, fast_bfloat16=False)
    figures = gather([worked, Counters(seconds=11)], machine, "float32", workers=2, batch_size=64, decode="exact")
    assert (figures.waiting, figures.forward, figures.blocked, figures.writing) == (0.5, 0.4, 0.1, 0.3)
    assert (figures.reading, figures.decoding) == (pytest.approx(0.1), pytest.approx(0.2))
    assert (figures.cpu, figures.worker_cpu, figures.machine_cpu, figures.pixels) == (0.25, 0.75, 0.75, 200)
    assert figures.filled == pytest.approx(90 / (2 * 64))
    assert figures.images_by_rank == (90, 0) and figures.seconds_by_rank == (10, 0) and figures.seconds == 10


def test_the_record_of_a_rank_says_null_for_what_is_not_known() -> None:
    empty, busy = record([Counters(), Counters(images=8, seconds=2, first=1, waiting=0.25, device_use=0.5)])
    assert empty["waiting_share"] is None and empty["device_use"] is None and empty["images"] == 0
    assert (busy["rank"], busy["images_per_second"], busy["waiting_share"], busy["device_use"]) == (1, 4, 0.25, 0.5)
