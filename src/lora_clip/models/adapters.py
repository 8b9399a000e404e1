"""An adapter onto a base model's towers: every weight accounted for, or a loud failure.

Adapters exist that were trained on whole models (CLIPModel), on towers (CLIPVisionModel) and on towers with projection;
the family says by which names they are told apart. What an adapter holds for the text tower does not touch images:
`attach` leaves it aside, knowingly, and `attach_text` takes it for queries. Everything must fit exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import nn

from lora_clip.errors import AdapterError
from lora_clip.models.adapter_clip_lora import is_of_clip_lora, weights_of
from lora_clip.models.adapter_kinds import (
    MERGE_YOURSELF,
    USE_BASE,
    AdapterSummary,
    for_one_tower,
    is_shared,
    kind_of,
    peft_at_work,
    read_config,
    summary_of,
    tower_of,
    trained_on,
)
from lora_clip.models.adapter_layout import PREFIX, find_root, fits_both, is_in, plain_names, without_head
from lora_clip.models.adapter_older import as_today
from lora_clip.models.adapter_open_clip import as_transformers, is_of_open_clip
from lora_clip.models.adapter_sums import summary_of_sum
from lora_clip.models.checkpoint import Checkpoint, read_adapter_config

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

    from lora_clip.models.generic import Family


FILE = "adapter_model.safetensors"


def attach(family: Family, vision: nn.Module, folder: Path) -> tuple[PeftModel, AdapterSummary]:
    """Put the adapter onto a family's vision tower, in place; returns the PEFT model around it.

    Raises AdapterError for missing, unexpected or misshapen weights, for a kind that cannot be merged, and for an
    adapter without any weight that touches images.
    """
    config, every = _read(folder)
    config, weights = as_today(vision, config, _image_weights(family, every, folder))
    if is_shared(config) and not _is_of_vision_alone(family, every, folder):
        raise AdapterError(
            f"adapter {folder} is of type {kind_of(config)}, whose layers share what depends on all of them, and it "
            f"was not trained on a vision tower alone: {MERGE_YOURSELF}"
        )
    root = find_root(vision, weights, family.vision_modules)
    return _put_on(root, config, without_head(root, weights), folder), summary_of(weights, config)


def attach_text(family: Family, text: nn.Module, folder: Path) -> PeftModel | None:
    """Put what the adapter holds for text onto a family's text tower, in place; None where it holds nothing.

    Raises AdapterError as `attach` does.
    """
    config, every = _read(folder)
    weights = {name: weight for name, weight in every.items() if is_in(name, family.text_modules)}
    if not weights:
        return None
    root = find_root(text, weights, family.text_modules)
    return _put_on(root, config, weights, folder)


def _is_of_vision_alone(family: Family, weights: Iterable[str], folder: Path) -> bool:
    """Whether nothing but image embeddings was trained, by the file's names and by the class that it names."""
    if family.text_class is None or tower_of(read_adapter_config(folder)) == "vision":
        return True
    named = [name for name in weights if name.startswith(PREFIX)]
    return bool(named) and not any(is_in(name, family.text_modules) for name in named)


def check_towers(family: Family, checkpoint: Checkpoint) -> str | None:
    """What to note of adapters whose weights fit both of the base's towers; None where it is clear which they are for.

    Raises AdapterError where the config of one names no class that it was trained on.
    """
    notes = (_check_tower(family, checkpoint.base_folder, part.folder) for part in checkpoint.adapters)
    return "; ".join(filter(None, notes)) or None


def _check_tower(family: Family, base: Path, folder: Path) -> str | None:
    config = read_adapter_config(folder)
    if family.text_class is None or tower_of(config) == "vision" or not family.has_text(base):
        return None
    _, every = _read(folder)
    if not fits_both(every, family.shapes(base), family.vision_modules, family.text_modules):
        return None
    if named := trained_on(config):
        return f"adapter {folder} was trained on a {named}, which both towers have: it is taken for the vision tower"
    raise AdapterError(
        f"adapter {folder} fits the vision tower and the text tower of the base alike, and does not say which it was "
        f"trained on: add to its adapter_config.json {_auto_mapping(family.vision_class, 'Vision')} where that was the "
        f"vision tower, {_auto_mapping(family.text_class, 'Text')} where it was the text tower"
    )


def _auto_mapping(class_name: str, tower: str) -> str:
    """What PEFT writes of the class that it was put onto: of a family's class, the tower alone."""
    import transformers

    name = class_name.removesuffix("WithProjection")
    name = name if tower in name else name.replace("Model", f"{tower}Model")
    library = getattr(transformers, name).__module__
    return f'"auto_mapping": {{"base_model_class": "{name}", "parent_library": "{library}"}}'


def _put_on(root: nn.Module, config: PeftConfig, weights: Mapping[str, torch.Tensor], folder: Path) -> PeftModel:
    """An adapter's weights on a module, in place, each of them accounted for."""
    from peft import get_peft_model, set_peft_model_state_dict

    with peft_at_work(f"adapter {folder} does not fit the base model"):
        model = get_peft_model(root, for_one_tower(config))
    _check_fit(_weights_of(model), weights, folder)
    with peft_at_work(f"adapter {folder} cannot be loaded"):
        set_peft_model_state_dict(model, dict(weights))
    _check_loaded(_weights_of(model), weights, folder)
    return model.eval()


def merge(model: PeftModel, folder: Path) -> None:
    """Write the adapter's changes into the base weights, in place, and leave no trace of PEFT.

    Raises AdapterError where a merged weight is not finite.
    """
    with peft_at_work(f"adapter {folder} cannot be merged"):
        model.merge_and_unload(safe_merge=True)


def _read(folder: Path) -> tuple[PeftConfig, dict[str, torch.Tensor]]:
    """An adapter's config and weights, under the names that PEFT and transformers use today."""
    config = read_config(folder)
    with peft_at_work(f"adapter {folder}: {FILE} cannot be read"):
        weights = weights_of(folder) if is_of_clip_lora(folder) else plain_names(load_file(folder / FILE))
    return as_transformers(config, weights, folder) if is_of_open_clip(weights) else (config, weights)


def _image_weights(family: Family, weights: Mapping[str, torch.Tensor], folder: Path) -> dict[str, torch.Tensor]:
    kept = {name: weight for name, weight in weights.items() if not is_in(name, family.text_modules)}
    if not kept:
        touched = "only the text tower" if weights else "nothing"
        raise AdapterError(
            f"adapter {folder} touches {touched}, so image embeddings would be the base model's. {USE_BASE}"
        )
    broken = sorted(name for name, weight in kept.items() if not weight.isfinite().all())
    if broken:
        raise AdapterError(f"adapter {folder}: {_count('are not finite', broken, len(kept))}: its training diverged")
    return kept


def _weights_of(model: PeftModel) -> dict[str, torch.Tensor]:
    """What PEFT would save of the model: the adapter's weights under the names that they have in a file."""
    from peft import get_peft_model_state_dict

    with peft_at_work("the adapter's weights cannot be listed"):
        return get_peft_model_state_dict(model, save_embedding_layers=False)


def _check_fit(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], folder: Path) -> None:
    common = expected.keys() & found.keys()
    problems = (
        _count("missing", expected.keys() - found.keys(), len(expected)),
        _count("unexpected", found.keys() - expected.keys(), len(found)),
        _count("misshapen", [name for name in common if expected[name].shape != found[name].shape], len(found)),
    )
    if any(problems):
        raise AdapterError(
            f"adapter {folder} does not fit the base model: {'; '.join(filter(None, problems))}. "
            "Is this the base it was trained on (its adapter_config.json says which)?"
        )


def _check_loaded(held: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], folder: Path) -> None:
    """PEFT passes over weights that it finds no place for, so what the model holds is compared with the file."""
    lost = [name for name, weight in held.items() if not torch.equal(weight.cpu(), given[name].to(weight.dtype))]
    if lost:
        raise AdapterError(f"adapter {folder}: {_count('were not loaded', lost, len(given))} by this version of PEFT")


def _count(what: str, names: Iterable[str], total: int) -> str:
    listed = sorted(names)
    return f"{len(listed)} of {total} weights {what} (such as {listed[0]})" if listed else ""


def summarise(family: Family, checkpoint: Checkpoint) -> AdapterSummary | None:
    """What a checkpoint's adapter is, from its files alone; None where it has none. Raises AdapterError."""
    each = []
    for part in checkpoint.adapters:
        config, every = _read(part.folder)
        each.append(summary_of(_image_weights(family, every, part.folder), config))
    return summary_of_sum(each) if checkpoint.is_sum else each[0] if each else None
