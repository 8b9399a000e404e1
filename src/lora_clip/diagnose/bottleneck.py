"""The bottleneck of a run and what to change, in plain words: a function of the run's figures, and of nothing else."""

from __future__ import annotations

import math
from statistics import median

from lora_clip.diagnose.figures import Figures
from lora_clip.terminal import count_of

ENOUGH_SECONDS = 2.0
"""A shorter run is start-up and little else."""
BUSY = 0.8
"""The share of its time from which something is what all else waits for."""
WORKERS_BUSY = 0.6
BLOCKED = 0.1
STRAGGLES = 1.25
"""How many times as long as the median one rank may take before it is named."""
STRAGGLES_SECONDS = 5.0
OTHERS = 0.15
"""The share of the cores from which what else runs on the machine is named, and from which it is the bottleneck."""
OTHERS_LIMIT = 0.3
LARGE_PIXELS = 1_500_000
LARGE_BATCH = 256
FILLED = 0.8
"""The share of images in batches from which a GPU has nothing better to compute."""
MEMORY_TO_SPARE = 0.5


def diagnose(figures: Figures) -> str:
    """The bottleneck, in sentences; empty for a run without images."""
    if not figures.images:
        return ""
    parts = (part(figures) for part in (_bottleneck, _idle, _unused, _straggler, _others))
    return ". ".join(part for part in parts if part)


def _bottleneck(figures: Figures) -> str:
    if figures.seconds < ENOUGH_SECONDS:
        return (
            f"too short to name a bottleneck: {figures.startup:.1f} s until the first batch was through, "
            f"then {figures.seconds:.1f} s"
        )
    if figures.writing >= BUSY and _held_up(figures) >= BLOCKED:
        return _writing(figures)
    return _on_cpu(figures) if figures.device == "cpu" else _on_gpu(figures)


def _held_up(figures: Figures) -> float:
    """What the writer cost: a GPU that computes is held up by nothing, however long the host stood in a queue."""
    return min(figures.blocked, 1 - figures.forward)


def _writing(figures: Figures) -> str:
    return (
        f"writing was the bottleneck: the writer was busy {_percent(figures.writing)} of the time "
        f"and held the model up for {_percent(_held_up(figures))}; try an output_dir on a faster disk"
    )


# --- With a GPU ------------------------------------------------------------------------------------------------------


def _on_gpu(figures: Figures) -> str:
    if figures.forward >= BUSY:
        return _forward_on_gpu(figures)
    waited = f"the device waited {_percent(1 - figures.forward)} of the time"
    if figures.reading + figures.decoding < WORKERS_BUSY and figures.workers:
        return _decoding_on_gpu(figures, waited) if figures.decode == "gpu" else _handing_over(figures, waited)
    if figures.reading > figures.decoding:
        return _reading(figures, waited)
    return _decoding(figures, waited)


def _forward_on_gpu(figures: Figures) -> str:
    busy = f"the GPU was the bottleneck: it computed {_percent(figures.forward)} of the time"
    if figures.dtype == "float32":
        return f"{busy}, in float32; try model.dtype=float16"
    if figures.filled < FILLED:
        return (
            f"{busy}, and only {_percent(figures.filled)} of its batches were images, since shards end within one; "
            f"try data.batch_size={math.ceil(figures.filled * figures.batch_size)}, or larger shards"
        )
    if figures.batch_size < LARGE_BATCH and not figures.device_memory > MEMORY_TO_SPARE:
        return (
            f"{busy}; try data.batch_size={min(4 * figures.batch_size, LARGE_BATCH)}, beyond that only more GPUs help"
        )
    return f"{busy}; only more GPUs, or model.compile=true on long jobs, help"


def _decoding_on_gpu(figures: Figures, waited: str) -> str:
    busy = _percent(figures.reading + figures.decoding)
    return (
        f"decoding on the GPU was the bottleneck: {waited}, and the workers were busy only {busy}; "
        f"try data.decode=exact, which decodes on the {_cores(figures)}"
    )


def _handing_over(figures: Figures, waited: str) -> str:
    busy = _percent(figures.reading + figures.decoding)
    advice = f"; try data.batch_size={4 * figures.batch_size}" if figures.batch_size < LARGE_BATCH else ""
    return (
        f"neither the GPU nor decoding was the bottleneck: {waited}, and the workers were busy only {busy}: "
        f"what lies between, handing batches over, is the limit{advice}"
    )


def _reading(figures: Figures, waited: str) -> str:
    return (
        f"reading was the bottleneck: {waited}, and the workers waited for storage "
        f"{_percent(figures.reading)} of theirs; "
        f"try faster storage, or more readers at once: data.num_workers={2 * max(1, figures.workers)}"
    )


def _decoding(figures: Figures, waited: str) -> str:
    decoders = figures.workers * figures.local_ranks
    if figures.workers < (wanted := _workers_wanted(figures)):
        who = f"{decoders} of {figures.cores} cores decode" if figures.workers else "no core but the rank's own decodes"
        return f"decoding was the bottleneck: {waited}; {who}; try data.num_workers={wanted}"
    return f"the cores were the bottleneck: {waited}, with {decoders} workers on {_cores(figures)}; {_lighter(figures)}"


def _workers_wanted(figures: Figures) -> int:
    """Workers per rank that would keep the device busy, as far as there are cores; an eighth is left for the rest."""
    each = max(1, (figures.cores - figures.cores // 8) // figures.local_ranks)
    needed = math.ceil(max(1, figures.workers) / max(figures.forward, 0.01))
    return min(each, needed)


def _lighter(figures: Figures) -> str:
    if figures.pixels < LARGE_PIXELS:
        return "only more cores help"
    large = f"the images are large ({figures.pixels / 1e6:.1f} megapixels)"
    if figures.decode == "exact":
        return f"{large}: try data.decode=fast, or smaller copies of them; else only more cores help"
    return f"{large}: smaller copies of them decode faster, else only more cores help"


# --- On the CPU alone, where decoding and the forward share the cores ------------------------------------------------


def _on_cpu(figures: Figures) -> str:
    decoding, forward = _cpu_shares(figures)
    if _taken(figures) >= OTHERS_LIMIT:
        return f"other programs were the bottleneck: {_they_took(figures)}, this job kept {_kept(figures)} busy"
    if decoding + forward >= BUSY:
        return _cores_on_cpu(figures, decoding, forward)
    if not figures.workers:
        return _taking_turns(figures)
    if figures.waiting < figures.forward:
        return _forward_on_cpu(figures)
    waited = f"the model waited {_percent(figures.waiting)} of the time"
    if figures.reading > figures.decoding and figures.reading + figures.decoding >= WORKERS_BUSY:
        return _reading(figures, waited)
    return _decoding_on_cpu(figures, waited)


def _cpu_shares(figures: Figures) -> tuple[float, float]:
    """What decoding and the forward took of all cores; without workers one process does both in turn."""
    if figures.workers:
        return figures.worker_cpu, figures.cpu
    both = figures.decoding + figures.forward
    return figures.cpu * figures.decoding / both, figures.cpu * figures.forward / both


def _cores_on_cpu(figures: Figures, decoding: float, forward: float) -> str:
    shares = f"decoding took {_percent(decoding)} of their time, the forward {_percent(forward)}"
    text = f"the cores were the bottleneck: {shares}"
    if forward > decoding and figures.dtype == "float32" and figures.fast_bfloat16:
        return f"{text}; try model.dtype=bfloat16, which this CPU computes faster"
    help_ = "only more cores or a GPU help" if forward > decoding else _lighter(figures)
    return f"{text}; {help_}"


def _taking_turns(figures: Figures) -> str:
    return (
        f"decoding and the forward took turns ({_percent(figures.waiting)} and {_percent(figures.forward)} of the "
        f"time) and used {_percent(figures.cpu)} of {_cores(figures)}; try data.num_workers={_per_rank(figures)}"
    )


def _forward_on_cpu(figures: Figures) -> str:
    used = figures.threads * figures.local_ranks
    text = f"the forward was the bottleneck: it took {_percent(figures.forward)} of the time"
    if used < figures.cores:
        return f"{text}, on {used} of {_cores(figures)}; try OMP_NUM_THREADS={_per_rank(figures)}"
    text = f"{text} and kept {_kept(figures)} busy"
    if (more := 2 * figures.local_ranks) <= figures.cores:
        return f"{text}; try trainer.devices={more}: smaller teams of threads wait less for one another"
    return text


def _decoding_on_cpu(figures: Figures, waited: str) -> str:
    decoders = figures.workers * figures.local_ranks
    if decoders < figures.cores and figures.reading + figures.decoding >= WORKERS_BUSY:
        who = f"{decoders} of {_cores(figures)} decode"
        return f"decoding was the bottleneck: {waited}; {who}; try data.num_workers={_per_rank(figures)}"
    return f"decoding was the bottleneck: {waited}, while the job kept {_kept(figures)} busy"


# --- All ranks -------------------------------------------------------------------------------------------------------


def _idle(figures: Figures) -> str:
    ranks = len(figures.images_by_rank)
    idle = [str(rank) for rank, images in enumerate(figures.images_by_rank) if not images]
    if not idle:
        return ""
    who = f"rank{'s' if len(idle) > 1 else ''} {', '.join(idle)} of {ranks} had nothing to do"
    if figures.images < ranks:
        return f"{who}: there were only {figures.images} images"
    return f"{who}: {figures.images} images are too few batches of {figures.batch_size}; " + (
        f"try data.batch_size={figures.images // ranks}"
    )


def _unused(figures: Figures) -> str:
    if figures.device == "cpu" and figures.gpus:
        return "the GPU was not used: leave trainer.accelerator out"
    if figures.device == "cuda" and figures.gpus > figures.local_ranks:
        return (
            f"{figures.gpus - figures.local_ranks} of {figures.gpus} GPUs were not used: "
            f"try trainer.devices={figures.gpus} (torchrun: --nproc_per_node={figures.gpus})"
        )
    return ""


def _straggler(figures: Figures) -> str:
    worked = [seconds for seconds in figures.seconds_by_rank if seconds]
    if len(worked) < 2:
        return ""
    usual, longest = median(worked), max(worked)
    if longest < usual * STRAGGLES or longest - usual < STRAGGLES_SECONDS:
        return ""
    rank = figures.seconds_by_rank.index(longest)
    return (
        f"rank {rank} took {longest:.0f} s, the others about {usual:.0f}: "
        "its device, its disk or what else runs there is slower"
    )


def _per_rank(figures: Figures) -> int:
    """The cores that are each rank's share."""
    return max(1, figures.cores // figures.local_ranks)


def _others(figures: Figures) -> str:
    said = figures.seconds < ENOUGH_SECONDS or (figures.device == "cpu" and _taken(figures) >= OTHERS_LIMIT)
    return "" if said or not _taken(figures) >= OTHERS else f"other programs: {_they_took(figures)}"


def _they_took(figures: Figures) -> str:
    return f"they took {_percent(_taken(figures))} of the cores"


def _taken(figures: Figures) -> float:
    """The share of the cores that other programs took."""
    return figures.machine_cpu - figures.cpu - figures.worker_cpu


def _kept(figures: Figures) -> str:
    return f"{_percent(figures.cpu + figures.worker_cpu)} of {_cores(figures)}"


def _cores(figures: Figures) -> str:
    return count_of(figures.cores, "core")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
