"""The job: plan, predict, verify, report."""

from __future__ import annotations

import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from omegaconf import DictConfig, OmegaConf

from lora_clip.app import launch
from lora_clip.app.quiet import quiet_lightning
from lora_clip.diagnose import summary
from lora_clip.errors import OutputError, TooManyRejectsError
from lora_clip.loading.datamodule import PixelDataModule
from lora_clip.loading.plan import Inventory, Plan, make_plan, take_inventory
from lora_clip.loading.stages import load_stages
from lora_clip.models.adapter_kinds import AdapterSummary
from lora_clip.models.adapters import summarise
from lora_clip.models.base import find_family
from lora_clip.models.checkpoint import Checkpoint, digests, find_checkpoint
from lora_clip.models.compute import DTYPES, Compute, resolve_dtype
from lora_clip.models.module import EmbeddingModule
from lora_clip.monitor.callback import Monitor
from lora_clip.output.manifest import build_manifest, read_manifest, upgrade_manifest, write_manifest
from lora_clip.output.notes import take_notes
from lora_clip.output.session import OutputSession
from lora_clip.output.verify import Verdict
from lora_clip.output.writer import EmbeddingWriter
from lora_clip.report.run import write_report
from lora_clip.sources.base import Shard, Source, open_source
from lora_clip.types import PreprocessSpec


@dataclass(frozen=True)
class Model:
    """The model's side of a job: where it lies, how its pixels are made, in what dtype it computes and is saved."""

    checkpoint: Checkpoint
    spec: PreprocessSpec
    dtype: torch.dtype
    output_dtype: str


@dataclass(frozen=True)
class Job:
    """What rank 0 knows of the job; `wanted` counts the positions of each shard that the output is to hold at last."""

    model: Model
    inventory: Inventory
    plan: Plan
    wanted: Mapping[int, int]
    fingerprint: Mapping[str, Any]
    settings: summary.Settings
    max_reject_fraction: float

    @property
    def allowed_rejects(self) -> float:
        """How many of the images of this run may be rejected."""
        return self.max_reject_fraction * self.plan.images


def run(config: DictConfig) -> None:
    """Embed what is missing: plan, predict, verify, report.

    Raises a LoraClipError for everything that a user can mend.
    """
    started = time.time()
    quiet_lightning()
    root = Path(config.output_dir).expanduser()
    monitor, writer = Monitor(root), EmbeddingWriter(root, config.max_reject_fraction)
    trainer = launch.build_trainer(config.trainer, monitor.around(writer))
    model = find_model(config, trainer.strategy.root_device)
    source = open_source(config.data)
    settings = resolve_settings(config, root, model, trainer)
    stages = load_stages(config.data.get("stages"))
    data = PixelDataModule(source, model.spec, settings.batch_size, settings.workers, settings.decoding, stages)
    embedder = build_embedder(model, settings.batch_size, config.model.compile)
    if launch.rank_of(trainer) > 0:
        launch.predict(trainer, embedder, data)
        return
    with OutputSession(root, resume=config.resume) as session:
        job = plan(config, session, source, model, settings)
        if job.plan.images or launch.torchrun_shape():
            data.plans = job.plan.by_rank()
            monitor.clear(timelines=job.plan.images > 0)
            monitor.opening = lambda adapter: opening(job, session, embedder, adapter)
            launch.predict(trainer, embedder, data)
        finish(job, session, monitor, embedder, started)
        if config.index:
            print(add_index(session.root), flush=True)


def add_index(root: Path) -> str:
    """Index what is embedded; says what was done. Only here is FAISS imported."""
    if not (read_manifest(root) or {}).get("rows"):
        return "index:    there is nothing to index"
    from lora_clip.search.index import build_index
    from lora_clip.search.update import describe

    return describe(*build_index(root))


def find_model(config: DictConfig, device: torch.device) -> Model:
    """Where the configured model lies and how it is to be run, without loading it.

    Raises ModelError or AdapterError.
    """
    dtype = resolve_dtype(config.model.dtype, device.type)
    checkpoint = find_checkpoint(config.model.base, config.model.adapter)
    spec = find_family(checkpoint.base_folder).load_spec(checkpoint.base_folder)
    spec = replace(spec, orientation=config.data.orientation)
    return Model(checkpoint, spec, dtype, config.output.dtype)


def resolve_settings(config: DictConfig, root: Path, model: Model, trainer: pl.Trainer) -> summary.Settings:
    """How the job is run, with every `auto` resolved."""
    return summary.Settings(
        model.checkpoint,
        root,
        launch.ranks_of(trainer),
        launch.resolve_workers(config.data.num_workers, trainer.num_devices),
        launch.resolve_batch_size(config.data.batch_size, trainer.strategy.root_device),
        config.data.decode,
        model.dtype,
        model.output_dtype,
    )


def build_embedder(model: Model, batch_size: int, compile_model: bool) -> EmbeddingModule:
    """The LightningModule of the job."""
    compute = Compute(model.dtype, batch_size=batch_size, compile=compile_model)
    return EmbeddingModule(model.checkpoint, compute, DTYPES[model.output_dtype])


def fingerprint_of(model: Model, data: DictConfig, decoding: str) -> dict[str, Any]:
    """What one output directory holds one of: base, adapter, preprocessing, dtypes, and which members are images."""
    fingerprint = {
        **digests(model.checkpoint),
        "preprocessing": model.spec.to_json(),
        "decode": decoding,
        "model_dtype": str(model.dtype).removeprefix("torch."),
        "output_dtype": model.output_dtype,
        "image_key": _value(data.image_key),
    }
    return fingerprint | ({"stages": _value(data.stages)} if data.get("stages") else {})


def _value(value: Any) -> Any:
    """A value of the configuration as plain JSON."""
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def plan(config: DictConfig, session: OutputSession, source: Source, model: Model, settings: summary.Settings) -> Job:
    """What is to be done, from the input, what is committed already, and how many hands there are.

    Only after everything was found in order is the output directory touched.
    """
    fingerprint = fingerprint_of(model, config.data, settings.decoding)
    session.check(fingerprint)
    records = session.known_inputs()
    known = [Shard.from_json(line) for line in records]
    inventory = take_inventory(source, known, config.data.limit)
    _check_unchanged(session.snapshot.committed, known, inventory.shards)
    shards = {shard.id: shard for shard in (*known, *inventory.shards)}
    kept = session.prefixes()
    wanted = {id_: max(inventory.targets.get(id_, 0), kept.get(id_, 0)) for id_ in shards}
    session.begin(fingerprint, ({**shard.to_json(), "wanted": wanted[id_]} for id_, shard in sorted(shards.items())))
    ranges = session.recover(wanted).committed
    done = {shard: [(entry.start, entry.stop) for entry in found] for shard, found in ranges.items()}
    missing = make_plan(inventory, done, ranks=settings.ranks, workers=settings.workers, batch_size=settings.batch_size)
    return Job(model, inventory, missing, wanted, fingerprint, settings, config.max_reject_fraction)


def _check_unchanged(embedded: Container[int], known: Sequence[Shard], now: Sequence[Shard]) -> None:
    """Raises OutputError where a shard that is embedded, wholly or in part, is not the shard that it was."""
    before = {shard.id: shard for shard in known if shard.id in embedded}
    changed = [shard for shard in now if shard.id in before and before[shard.id].digest != shard.digest]
    if changed:
        first, more = changed[0], f"; {len(changed) - 1} more changed" if len(changed) > 1 else ""
        raise OutputError(
            f"{first.path} is not what it was when it was embedded ({before[first.id].images} images then, "
            f"{first.images} now{more}): give another output_dir, or resume=false to embed everything anew"
        )


def opening(job: Job, session: OutputSession, embedder: EmbeddingModule, adapter: AdapterSummary | None) -> str:
    """What will be done, once the model is on its device; and whether that is not how it was done before."""
    line = summary.opening(job.settings, job.inventory, job.plan, adapter)
    line += f"\nnote: {embedder.note}" if embedder.note else ""
    if not job.plan.images:
        return line
    notes = take_notes(embedder.trainer.strategy.root_device, embedder.compute.compile, job.settings.batch_size)
    differs = session.note(notes)
    return f"{line}\n{differs}" if differs else line


def finish(job: Job, session: OutputSession, monitor: Monitor, embedder: EmbeddingModule, started: float) -> None:
    """Assemble, verify, write the manifest and the report, and tell the user."""
    ranks = monitor.finish()
    verdict = session.conclude(job.wanted, embedded=job.plan.images > 0)
    if verdict.problems:
        raise OutputError(_unsound(session.root, verdict))
    if job.plan.images or read_manifest(session.root) is None:
        run_record = summary.run_record(job.settings, ranks, monitor.machine, started)
        adapter = embedder.adapter_summary or _adapter_on_disk(job.model.checkpoint)
        manifest = build_manifest(job.fingerprint, job.model.checkpoint, verdict, run_record, adapter)
        write_manifest(session.root, manifest)
        write_report(session.root)
    else:
        upgrade_manifest(session.root)
    print(summary.closing(session.root, job.plan, verdict), flush=True)
    if (rejects := int(sum(rank.rejects for rank in ranks))) > job.allowed_rejects:
        raise TooManyRejectsError(
            f"{rejects:,} images rejected, more than max_reject_fraction allows for this run "
            f"({int(job.allowed_rejects):,}): the reasons are above. The output is complete"
        )


def _adapter_on_disk(checkpoint: Checkpoint) -> AdapterSummary | None:
    """What the adapter is, for a run that had nothing left to embed and so loaded no model."""
    return summarise(find_family(checkpoint.base_folder), checkpoint)


def _unsound(root: Path, verdict: Verdict) -> str:
    listed = "\n".join(f"  {problem}" for problem in verdict.problems[:10])
    more = f"\n  … and {len(verdict.problems) - 10} more" if len(verdict.problems) > 10 else ""
    return (
        f"{root} is not complete and sound:\n{listed}{more}\nType the same command again for what is missing; "
        "for files that changed, delete them first"
    )
