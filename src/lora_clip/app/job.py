"""The job: plan, predict, verify, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from omegaconf import DictConfig

from lora_clip.app import launch
from lora_clip.app.compilation import AUTO, decide
from lora_clip.app.exits import give_up
from lora_clip.app.outputs import Output, require_texts, shared_spec
from lora_clip.app.planning import Job, Survey, plan
from lora_clip.app.quiet import quiet_lightning
from lora_clip.config import FULL, read
from lora_clip.diagnose import summary
from lora_clip.errors import ConfigError, OutputError, TooManyRejectsError
from lora_clip.inspection.pictures import Small
from lora_clip.loading.datamodule import EarlyBatches, PixelDataModule
from lora_clip.loading.direct import DIRECT, require_cuda
from lora_clip.loading.stages import load_stages
from lora_clip.models.adapter_kinds import AdapterSummary
from lora_clip.models.adapters import summarise
from lora_clip.models.base import find_family
from lora_clip.models.checkpoint import Checkpoint
from lora_clip.models.compute import DTYPES, Compute, resolve_dtype
from lora_clip.models.distance import Distance
from lora_clip.models.module import EmbeddingModule
from lora_clip.models.proof import Proof
from lora_clip.monitor import clock
from lora_clip.monitor.callback import Monitor
from lora_clip.output.bucket_session import BucketSession
from lora_clip.output.manifest import build_manifest, read_manifest, upgrade_manifest, write_manifest
from lora_clip.output.notes import farthest_decoding, lowest_proof, read_notes, take_notes
from lora_clip.output.session import OutputSession
from lora_clip.output.verify import Verdict
from lora_clip.output.writer import EmbeddingWriter
from lora_clip.pixels import nvjpeg
from lora_clip.pixels.decode import GPU
from lora_clip.report.run import write_report
from lora_clip.sources.base import open_source


def run(config: DictConfig, outputs: Sequence[Output]) -> None:
    """Embed what `outputs` lack: plan, predict, verify, report.

    Raises a LoraClipError for everything that a user can mend.
    """
    started = clock.began()
    quiet_lightning()
    roots = [output.root for output in outputs]
    monitor, writer = Monitor(roots), EmbeddingWriter(roots, config.max_reject_fraction)
    trainer = launch.build_trainer(config.trainer, [*monitor.around(writer), EarlyBatches()])
    spec, settings = shared_spec(outputs, config.data.orientation), resolve_settings(config, trainer)
    if settings.texts:
        require_texts(outputs)
    source, stages = open_source(config.data), load_stages(config.data.get("stages"))
    if settings.decoding == GPU:
        nvjpeg.require_nvjpeg(trainer.strategy.root_device, spec)
    if config.data.copies == DIRECT:
        require_cuda(trainer.strategy.root_device)
    data = PixelDataModule(
        source,
        spec,
        settings.batch_size,
        settings.workers,
        settings.decoding,
        stages,
        config.data.decode_seconds,
        give_up,
        config.data.copies,
    )
    embedder = build_embedder(outputs, settings, config.model.compile)
    if launch.rank_of(trainer) > 0:
        launch.predict(trainer, embedder, data)
        return
    with ExitStack() as stack:
        sessions = [(one, stack.enter_context(session)) for one, session in open_sessions(config, outputs, trainer)]
        job = plan(config, sessions, source, spec, settings)
        if job.plan.images or launch.is_waited_for(trainer):
            compiled, said = compilation(config.model.compile, job, trainer)
            data.plan = replace(job.to_send(), compile=compiled)
            if not job.joins:
                monitor.clear(number for number, images in enumerate(job.plan.images_each) if images)
            monitor.opening = lambda: opening(job, embedder, said)
            monitor.open_logger = lambda: launch.open_logger(config)
            launch.predict(trainer, embedder, data)
        job.finish_shared()
        finish(job.counted(source), monitor, embedder, started, full=config.verify == FULL)
        if config.index:
            print(*map(add_index, roots), sep="\n", flush=True)


def open_sessions(
    config: DictConfig, outputs: Sequence[Output], trainer: pl.Trainer
) -> list[tuple[Output, OutputSession]]:
    """A session for each output. Raises ConfigError where it cannot be had."""
    if not outputs[0].address:
        seconds = sharing(config, outputs)
        return [(one, OutputSession(one.root, config.resume, seconds)) for one in outputs]
    if trainer.num_nodes > 1:
        raise ConfigError("an output in a bucket takes no nodes that meet: start a job on each machine, they share it")
    (one,) = outputs
    return [(one, BucketSession(one.root, one.address, config.resume, float(config.share_seconds)))]


def sharing(config: DictConfig, outputs: Sequence[Output]) -> float | None:
    """After how long a silent job is given up where several share an output; None where none may.

    Raises ConfigError for several outputs.
    """
    if not config.share:
        return None
    if len(outputs) > 1:
        raise ConfigError("share=true takes one adapter: start the jobs once for each of model.adapter")
    return float(config.share_seconds)


def add_index(root: Path) -> str:
    """Index what is embedded; says what was done. Only here is FAISS imported."""
    if not (read_manifest(root) or {}).get("rows"):
        return "index:    there is nothing to index"
    from lora_clip.search.index import build_index
    from lora_clip.search.update import describe

    return describe(*build_index(root))


def resolve_settings(config: DictConfig, trainer: pl.Trainer) -> summary.Settings:
    """How the job is run, with every `auto` resolved."""
    device = trainer.strategy.root_device
    return summary.Settings(
        launch.ranks_of(trainer),
        launch.resolve_workers(config.data.num_workers, trainer.num_devices),
        launch.resolve_batch_size(config.data.batch_size, device),
        config.data.decode,
        resolve_dtype(config.model.dtype, device.type),
        config.output.dtype,
        "text" in read(config, "embed"),
    )


def build_embedder(outputs: Sequence[Output], settings: summary.Settings, compile_model: bool | str) -> EmbeddingModule:
    """The LightningModule of the job."""
    planned = None if compile_model == AUTO else bool(compile_model)
    compute = Compute(settings.dtype, batch_size=settings.batch_size, compile=planned)
    checkpoints = [output.checkpoint for output in outputs]
    return EmbeddingModule(checkpoints, compute, DTYPES[settings.output_dtype], settings.texts)


def compilation(asked: bool | str, job: Job, trainer: pl.Trainer) -> tuple[bool, str | None]:
    """Whether the job compiles its models, and a line that says so where `auto` decides."""
    lacking = [one for one, images in zip(job.surveys, job.plan.images_each, strict=True) if images]
    earlier = [notes for one in lacking for notes in read_notes(one.session.root)]
    return decide(asked, trainer.strategy.root_device, job.plan.images, earlier)


def opening(job: Job, embedder: EmbeddingModule, compiled: str | None) -> str:
    """What will be done, once the models are on their device; and whether that is not how it was done before."""
    told = [
        summary.NamedModel(
            one.output.name,
            one.output.checkpoint,
            adapter_of(number, one, embedder),
            embedder.proof(number),
            embedder.distance(number),
        )
        for number, one in enumerate(job.surveys)
    ]
    lines = [summary.opening(job.settings, job.inventory, job.plan, told)]
    lines += [compiled] if compiled else []
    lines += [f"note: {note}" for note in embedder.notes]
    notes = take_notes(embedder.compute.device, bool(embedder.compute.compile), job.settings.batch_size)
    lacking = [(one, told[number]) for number, one in enumerate(job.surveys) if job.plan.images_each[number]]
    measured = [(one, _json(model.proof), _json(model.distance)) for one, model in lacking]
    differs = [line for one, *found in measured if (line := one.session.note(notes, *found))]
    return "\n".join([*lines, *dict.fromkeys(differs)])


def _json(measured: Proof | Distance | None) -> dict[str, Any] | None:
    return None if measured is None else asdict(measured)


def adapter_of(number: int, one: Survey, embedder: EmbeddingModule) -> AdapterSummary | None:
    """What an output's adapter is; read from its files where the output lacks nothing, so that no model was loaded."""
    return embedder.adapter_summary(number) or _adapter_on_disk(one.output.checkpoint)


def finish(job: Job, monitor: Monitor, embedder: EmbeddingModule, started: float, full: bool) -> None:
    """Assemble, verify, write manifests and reports, and tell the user."""
    ranks = monitor.finish()
    verdicts = [
        one.session.conclude(one.wanted, embedded=images > 0, full=full)
        for one, images in zip(job.surveys, job.plan.images_each, strict=True)
    ]
    run_record = summary.run_record(job.settings, ranks, monitor.machine, started)
    monitor.log_end(ranks, run_record)
    small: Small = {}
    for number, (one, verdict) in enumerate(zip(job.surveys, verdicts, strict=True)):
        if verdict.sound:
            embedded = job.plan.images_each[number] > 0
            report = one.session.fetch_for_report()
            record(one, verdict, run_record, partial(adapter_of, number, one, embedder), embedded, small, report)
            one.session.publish()
            one.session.close_share()
    places = [one.output.place for one in job.surveys]
    if not job.plan.counted and (notes := summary.input_notes(job.inventory)):
        print(*notes, sep="\n")
    if note := summary.announced_note(job.inventory):
        print(note)
    if unsound := [_unsound(place, found) for place, found in zip(places, verdicts, strict=True) if found.problems]:
        raise OutputError("\n".join(unsound))
    print(closing([one.output.root for one in job.surveys], job, verdicts, places), flush=True)
    images = job.plan.images if job.plan.counted else sum(rank.images for rank in ranks)
    if (rejects := int(sum(rank.rejects for rank in ranks))) > (allowed := job.max_reject_fraction * images):
        raise TooManyRejectsError(
            f"{rejects:,} images rejected, more than max_reject_fraction allows for this run "
            f"({int(allowed):,}): the reasons are above. The output is complete"
        )


def record(
    one: Survey,
    verdict: Verdict,
    run_record: dict[str, Any],
    adapter: Callable[[], AdapterSummary | None],
    embedded: bool,
    small: Small | None = None,
    report: bool = True,
) -> None:
    """Write an output's manifest and report; those of one that nothing was added to stay as they are.

    `adapter` is asked for then only: where nothing was loaded, PEFT would be imported to read an adapter's files.
    """
    root = one.output.root
    if embedded or read_manifest(root) is None:
        of_output = (one.fingerprint, one.output.checkpoint, verdict, run_record, adapter())
        write_manifest(root, build_manifest(*of_output, lowest_proof(root), farthest_decoding(root)))
        if report:
            write_report(root, small)
    else:
        upgrade_manifest(root)


def closing(roots: Sequence[Path], job: Job, verdicts: Sequence[Verdict], places: Sequence[str]) -> str:
    """What was done, and what to type next."""
    if len(roots) == 1:
        return summary.closing(roots[0], job.plan, verdicts[0], places[0])
    return summary.closing_of_several(roots, job.plan, verdicts)


def _adapter_on_disk(checkpoint: Checkpoint) -> AdapterSummary | None:
    """What the adapter is, for an output that lacked nothing and so had no model loaded."""
    return summarise(find_family(checkpoint.base_folder), checkpoint)


def _unsound(place: str, verdict: Verdict) -> str:
    listed = "\n".join(f"  {problem}" for problem in verdict.problems[:10])
    more = f"\n  … and {len(verdict.problems) - 10} more" if len(verdict.problems) > 10 else ""
    return (
        f"{place} is not complete and sound:\n{listed}{more}\nType the same command again for what is missing; "
        "for files that changed, delete them first"
    )
