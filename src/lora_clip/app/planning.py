"""What is to be done: from the input, from what each output holds already, and from how many hands there are."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lora_clip.app.outputs import Output, as_typed
from lora_clip.compact import IntMap
from lora_clip.diagnose.summary import Settings
from lora_clip.errors import OutputError
from lora_clip.loading.catalog import RecordedShards
from lora_clip.loading.claims import cell_size
from lora_clip.loading.plan import Inventory, Plan, make_plan, take_inventory, where
from lora_clip.models.compute import dtype_name
from lora_clip.models.digests import digests, tokenizer_digest
from lora_clip.output.provenance import INPUTS
from lora_clip.output.session import OutputSession
from lora_clip.sources.base import Shard, Source, counted
from lora_clip.sources.shard_list import ShardList, ShardsById
from lora_clip.types import UNCOUNTED, PreprocessSpec

Done = Mapping[int, Sequence[tuple[int, int]]]


@dataclass(frozen=True)
class Survey:
    """One output before the run: the input under its numbers, and what of it is there.

    `known` are the shards of earlier runs, `wanted` counts the positions of each shard that it is to hold at last.
    """

    output: Output
    session: OutputSession
    fingerprint: Mapping[str, Any]
    known: ShardList
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
    def joins(self) -> bool:
        """Whether it takes part in what another job has begun."""
        return any(one.session.joined for one in self.surveys)

    def finish_shared(self) -> None:
        """Wait for the other jobs where several share the work, and do what nobody does."""
        if self.plan.share is not None:
            shards = {gap.shard for gap in self.plan.gaps}
            wanted = self.surveys[0].wanted
            self.surveys[0].session.finish_share({id_: wanted[id_] for id_ in shards})

    def to_send(self) -> Plan:
        """The plan as all ranks get it: shards by the file in which they stand, where they would have to be sent."""
        if self.settings.ranks == 1 or not self.plan.gaps:
            return self.plan
        first = min(self.plan.needed)
        recorded = RecordedShards.of(self.surveys[first].session.root / INPUTS)
        return replace(self.plan, shards=recorded)

    def counted(self, source: Source) -> Job:
        """The job after its run, with every shard counted. Raises DataError where there was no image in any."""
        surveys = [counts_of(one, source) for one in self.surveys]
        return replace(self, surveys=surveys, inventory=surveys[0].inventory)


def plan(
    config: DictConfig, sessions: Sequence[tuple[Output, OutputSession]], source: Source, spec: PreprocessSpec,
    settings: Settings,
) -> Job:  # fmt: skip
    """The job. Only after everything was found in order, for every output, is any directory touched."""
    if sessions[0][1].joined:
        return join(config, *sessions[0], source, spec, settings)
    surveys: list[Survey] = []
    for output, session in sessions:
        fingerprint = fingerprint_of(output, spec, config.data, settings)
        surveys.append(survey(output, session, fingerprint, source, config.data.limit, surveys))
    surveys = share_counts(surveys)
    inventory = shared_inventory(surveys)
    done = [begin(one, inventory) for one in surveys]
    made = make_plan(inventory, *done, **hands_of(settings))
    if surveys[0].session.share_seconds is not None and made.gaps:
        about = {
            **shared_settings(config, source, settings),
            "targets": list(inventory.targets.items()),
            "done": done[0],
        }
        made = replace(made, share=surveys[0].session.open_share(about), cell=about["cell"])
    return Job(surveys, inventory, made, settings, config.max_reject_fraction)


def hands_of(settings: Settings) -> dict[str, int]:
    """How many ranks and workers take batches of which size."""
    return {"ranks": settings.ranks, "workers": settings.workers, "batch_size": settings.batch_size}


def shared_settings(config: DictConfig, source: Source, settings: Settings) -> dict[str, Any]:
    """What must be the same in all jobs that share an output, besides its fingerprint, by the name of its key."""
    batch_size = settings.batch_size
    return {
        "input": where(source), "data.limit": config.data.limit, "data.batch_size": batch_size,
        "cell": cell_size(batch_size),
    }  # fmt: skip


def join(
    config: DictConfig, output: Output, session: OutputSession, source: Source, spec: PreprocessSpec,
    settings: Settings,
) -> Job:  # fmt: skip
    """The job as one of several that share an output: what the first has planned.

    Raises OutputError where it would do something else.
    """
    fingerprint = fingerprint_of(output, spec, config.data, settings)
    session.check(fingerprint)
    assert session.share is not None
    about = session.share.about or {}
    _check_same(about, shared_settings(config, source, settings), session)
    known = ShardList(map(Shard.from_json, session.known_inputs()))
    by_id, targets = ShardsById(known), dict(about["targets"])
    inventory = Inventory(ShardList(by_id[id_] for id_ in targets), targets)
    one = Survey(output, session, fingerprint, known, inventory, wanted_of(session, known, inventory))
    done = {int(id_): ranges for id_, ranges in about["done"].items()}
    made = make_plan(inventory, done, **hands_of(settings))
    made = replace(made, share=session.share, cell=about["cell"])
    return Job([one], inventory, made, settings, config.max_reject_fraction)


def _check_same(about: Mapping[str, Any], own: Mapping[str, Any], session: OutputSession) -> None:
    differing = [
        f"  {key}: {about.get(key)} there, {value} here" for key, value in own.items() if about.get(key) != value
    ]
    if differing:
        raise OutputError(
            f"the jobs that share {session.root} do something else:\n"
            + "\n".join(differing)
            + "\nType the same for all"
        )


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
    if settings.texts:
        fingerprint |= {"embed": ["image", "text"], "tokenizer": tokenizer_digest(output.checkpoint.base_folder)}
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
    known = ShardList(map(Shard.from_json, session.known_inputs()))
    same = next((one.inventory for one in others if one.known == known), None)
    inventory = same or take_inventory(source, known, limit)
    _check_unchanged(session.snapshot.committed, known, inventory.shards)
    return Survey(output, session, fingerprint, known, inventory, wanted_of(session, known, inventory))


def wanted_of(session: OutputSession, known: ShardList, inventory: Inventory) -> Mapping[int, int]:
    """How many positions of each shard an output is to hold at last: what is wanted now, and what it keeps."""
    kept, ids = session.prefixes(), {*known.ids, *inventory.shards.ids}
    return IntMap((id_, max(inventory.targets.get(id_, 0), kept.get(id_, 0))) for id_ in sorted(ids))


def share_counts(surveys: Sequence[Survey]) -> list[Survey]:
    """The surveys, where what one output's earlier runs have counted is known to all: they looked at the same files."""
    different = {id(one.inventory): one.inventory.shards for one in surveys}
    if len(different) == 1:
        return [*surveys]
    counted = {one.path: (of, at) for of in different.values() for at, one in enumerate(of) if one.images != UNCOUNTED}
    return [_told(one, counted) for one in surveys]


def _told(one: Survey, counted: Mapping[str, tuple[ShardList, int]]) -> Survey:
    before = one.inventory
    shards = ShardList(_as_known(shard, counted) for shard in before.shards)
    if shards == before.shards:
        return one
    told = zip(shards.ids, before.shards.images, shards.images, strict=True)
    targets = IntMap((id_, before.targets[id_] if then == now else now) for id_, then, now in told)
    inventory = before.counted_as(shards, targets)
    return replace(one, inventory=inventory, wanted=wanted_of(one.session, one.known, inventory))


def _as_known(shard: Shard, counted: Mapping[str, tuple[ShardList, int]]) -> Shard:
    if shard.images != UNCOUNTED or shard.path not in counted:
        return shard
    shards, at = counted[shard.path]
    return replace(shards[at], id=shard.id)


def _check_unchanged(embedded: Container[int], known: ShardList, now: ShardList) -> None:
    """Raises OutputError where a shard that is embedded, wholly or in part, is not the shard that it was."""
    before = ShardsById(known, (id_ for id_ in known.ids if id_ in embedded))
    both = (now[at] for at, id_ in enumerate(now.ids) if id_ in before)
    changed = [shard for shard in both if before[shard.id].digest != shard.digest]
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
    if one is other:
        return True
    if one.shards.ids != other.shards.ids or one.targets != other.targets:
        return False
    pairs = zip(one.shards, other.shards, strict=True)
    return all((mine.path, mine.digest) == (its.path, its.digest) for mine, its in pairs)


def _adapters(surveys: Sequence[Survey]) -> str:
    return ",".join(as_typed(one.output.checkpoint.adapter) for one in surveys)


def records(one: Survey) -> Iterator[dict[str, Any]]:
    """What inputs.jsonl holds of each shard, by id; `wanted` is null as long as nobody has counted it."""
    now, before = ShardsById(one.inventory.shards), ShardsById(one.known)
    for id_, wanted in one.wanted.items():
        shard = now[id_] if id_ in now else before[id_]
        yield {**shard.to_json(), "wanted": None if wanted == UNCOUNTED else wanted}


def counts_of(one: Survey, source: Source) -> Survey:
    """The survey with every shard counted, now that the run is over: an output's record of its input is whole then.

    Shards that no worker has told of are looked into: there is no image in them.
    """
    if all(target != UNCOUNTED for target in one.wanted.values()):
        return one
    told = ShardsById(ShardList(map(Shard.from_json, one.session.known_inputs())))
    shards = ShardList(counted(source, told.get(shard.id, shard)) for shard in one.inventory.shards)
    counts = zip(shards.ids, shards.images, strict=True)
    targets = IntMap((id_, min(one.inventory.targets[id_], images)) for id_, images in counts)
    now = replace(one, inventory=one.inventory.counted_as(shards, targets))
    now = replace(now, wanted=wanted_of(one.session, one.known, now.inventory))
    one.session.rewrite_inputs(records(now))
    return now


def begin(one: Survey, inventory: Inventory) -> Done:
    """Create the output or bring it into order; what it holds then, under the numbers of `inventory`."""
    lacks = one.lacks
    one.session.begin(one.fingerprint, records(one))
    ranges = one.session.recover(one.wanted).committed
    if not lacks:
        return {id_: [(0, target)] for id_, target in inventory.targets.items()}
    return {shard: [(entry.start, entry.stop) for entry in found] for shard, found in ranges.items()}
