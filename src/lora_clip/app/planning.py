"""What is to be done: from the input, from what each output holds already, and from how many hands there are."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lora_clip.app.outputs import Output
from lora_clip.diagnose.summary import Settings
from lora_clip.errors import OutputError
from lora_clip.loading.plan import Inventory, Plan, make_plan, take_inventory
from lora_clip.models.checkpoint import digests
from lora_clip.models.compute import dtype_name
from lora_clip.output.session import OutputSession
from lora_clip.sources.base import Shard, Source
from lora_clip.types import PreprocessSpec

Done = Mapping[int, Sequence[tuple[int, int]]]


@dataclass(frozen=True)
class Survey:
    """One output before the run: the input under its numbers, and what of it is there.

    `known` are the shards of earlier runs, `wanted` counts the positions of each shard that it is to hold at last.
    """

    output: Output
    session: OutputSession
    fingerprint: Mapping[str, Any]
    known: Sequence[Shard]
    inventory: Inventory
    wanted: Mapping[int, int]

    @property
    def lacks(self) -> bool:
        """Whether anything is missing."""
        kept = self.session.prefixes()
        return any(kept.get(id_, 0) < target for id_, target in self.inventory.targets.items())


@dataclass(frozen=True)
class Job:
    """What rank 0 knows of the job: its outputs, and one plan that serves them all."""

    surveys: Sequence[Survey]
    inventory: Inventory
    plan: Plan
    settings: Settings
    max_reject_fraction: float

    @property
    def allowed_rejects(self) -> float:
        """How many of the images of this run may be rejected."""
        return self.max_reject_fraction * self.plan.images


def plan(
    config: DictConfig, sessions: Sequence[tuple[Output, OutputSession]], source: Source, spec: PreprocessSpec,
    settings: Settings,
) -> Job:  # fmt: skip
    """The job. Only after everything was found in order, for every output, is any directory touched."""
    surveys: list[Survey] = []
    for output, session in sessions:
        fingerprint = fingerprint_of(output, spec, config.data, settings)
        surveys.append(survey(output, session, fingerprint, source, config.data.limit, surveys))
    inventory = shared_inventory(surveys)
    done = [begin(one, inventory) for one in surveys]
    hands = {"ranks": settings.ranks, "workers": settings.workers, "batch_size": settings.batch_size}
    return Job(surveys, inventory, make_plan(inventory, *done, **hands), settings, config.max_reject_fraction)


def fingerprint_of(output: Output, spec: PreprocessSpec, data: DictConfig, settings: Settings) -> dict[str, Any]:
    """What one output directory holds one of: base, adapter, preprocessing, dtypes, and which members are images."""
    fingerprint = {
        **digests(output.checkpoint),
        "preprocessing": spec.to_json(),
        "decode": settings.decoding,
        "model_dtype": dtype_name(settings.dtype),
        "output_dtype": settings.output_dtype,
        "image_key": _value(data.image_key),
    }
    return fingerprint | ({"stages": _value(data.stages)} if data.get("stages") else {})


def _value(value: Any) -> Any:
    """A value of the configuration as plain JSON."""
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def survey(
    output: Output, session: OutputSession, fingerprint: Mapping[str, Any], source: Source, limit: int | None,
    others: Sequence[Survey],
) -> Survey:  # fmt: skip
    """Look at one output and at the input under its numbers, which `others` that know the same shards have too."""
    session.check(fingerprint)
    known = [Shard.from_json(line) for line in session.known_inputs()]
    same = next((one.inventory for one in others if one.known == known), None)
    inventory = same or take_inventory(source, known, limit)
    _check_unchanged(session.snapshot.committed, known, inventory.shards)
    kept, ids = session.prefixes(), {shard.id for shard in (*known, *inventory.shards)}
    wanted = {id_: max(inventory.targets.get(id_, 0), kept.get(id_, 0)) for id_ in ids}
    return Survey(output, session, fingerprint, known, inventory, wanted)


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


def shared_inventory(surveys: Sequence[Survey]) -> Inventory:
    """The input under the numbers of all outputs that lack something of it.

    Raises OutputError where they number it differently: one was begun over another input.
    """
    lacking = [one for one in surveys if one.lacks] or surveys[:1]
    first = lacking[0]
    if others := [one for one in lacking if not _same(one.inventory, first.inventory)]:
        alike = [one for one in lacking if one not in others]
        commands = ", then ".join(f"model.adapter=[{_adapters(group)}]" for group in (alike, others))
        raise OutputError(
            f"{first.output.root} and {others[0].output.root} number the shards of this input differently, since one "
            f"of them was begun over another: run them one after the other, {commands}"
        )
    return first.inventory


def _same(one: Inventory, other: Inventory) -> bool:
    listed, also = ([(shard.id, shard.path, shard.digest) for shard in found.shards] for found in (one, other))
    return listed == also and one.targets == other.targets


def _adapters(surveys: Sequence[Survey]) -> str:
    return ",".join(str(one.output.checkpoint.adapter or "null") for one in surveys)


def begin(one: Survey, inventory: Inventory) -> Done:
    """Create the output or bring it into order; what it holds then, under the numbers of `inventory`."""
    lacks, shards = one.lacks, {shard.id: shard for shard in (*one.known, *one.inventory.shards)}
    lines = ({**shard.to_json(), "wanted": one.wanted[id_]} for id_, shard in sorted(shards.items()))
    one.session.begin(one.fingerprint, lines)
    ranges = one.session.recover(one.wanted).committed
    if not lacks:
        return {id_: [(0, target)] for id_, target in inventory.targets.items()}
    return {shard: [(entry.start, entry.stop) for entry in found] for shard, found in ranges.items()}
