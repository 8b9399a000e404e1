"""By which names an adapter's file calls the modules of a tower: the layouts of PEFT's and transformers' versions.

An adapter is trained on a whole model, on a tower, or on a transformer within one, and transformers 5.6 took
`vision_model.` out of a tower's names. Where the adapter goes is found by its names alone, for every family.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn

PREFIX = "base_model.model."
"""What PEFT writes before the name of a weight, in a file."""
HEAD = "classifier"
"""What transformers' classes for classification put behind a tower: it does not touch embeddings."""
INNER = ("", "encoder.", "encoder.layers.")
"""Where, within a tower, an adapter may have been trained."""
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.")
"""What torch.compile and FSDP put into names, where an adapter was saved from within them."""


def plain_names(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An adapter's weights under the names that PEFT gives them today."""
    return {_plain(name): weight for name, weight in weights.items()}


def _plain(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    name = re.sub(r"\.default(?=\.|$)", "", name)  # an adapter's own name, in a state_dict that was saved by hand
    return name.replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")  # DoRA's, in the same


def is_in(name: str, modules: Sequence[str]) -> bool:
    """Whether a weight lies in one of these modules of a whole model."""
    return name.removeprefix(PREFIX).partition(".")[0] in modules


def find_root(loaded: nn.Module, weights: Iterable[str], modules: Sequence[str]) -> nn.Module:
    """The module whose names the adapter's weights use: of those that know most of them, the outermost.

    `modules` are the names, in a family's whole model, of the tower and of its projections; none: there are no
    whole models.
    """
    named = [name.removeprefix(PREFIX) for name in weights if name.startswith(PREFIX)]
    return max(_roots(loaded, modules), key=lambda root: _known(root, named))  # the first of equals


def without_head(root: nn.Module, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights but for those of a classifier that was trained on top of `root`."""
    head = () if hasattr(root, HEAD) else (HEAD,)
    return {name: weight for name, weight in weights.items() if not is_in(name, head)}


def fits_both(
    weights: Iterable[str], shapes: Mapping[str, tuple[int, ...]], vision: Sequence[str], text: Sequence[str]
) -> bool:
    """Whether an adapter of a tower, or of a transformer within one, has a place in both towers of a whole model.

    `shapes` are those of the whole model's weights, `vision` and `text` its modules, the towers first.
    """
    named = [name.removeprefix(PREFIX) for name in weights if name.startswith(PREFIX)]
    if not named or not vision or not text or any(is_in(name, (*vision, *text)) for name in named):
        return False
    return any(
        all(_place(name, f"{vision[0]}.{inner}", f"{text[0]}.{inner}", shapes) for name in named) for inner in INNER
    )


def _place(name: str, vision: str, text: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a weight belongs to a module that both towers have, of one shape."""
    owners = [f"{parent}.weight" for parent in _parents(name)]
    return any((own := shapes.get(vision + one)) is not None and own == shapes.get(text + one) for one in owners)


def _roots(loaded: nn.Module, modules: Sequence[str]) -> Iterator[nn.Module]:
    """What an adapter may have been trained on, outermost first.

    What was loaded may be a whole model or a tower alone, by version of transformers: the tower is looked for in it, or
    put below the name that it has in a whole model.
    """
    inner = getattr(loaded, modules[0], None) if modules else None
    if modules:
        yield nn.ModuleDict({modules[0]: loaded}) if inner is None else loaded
    tower = loaded if inner is None else inner
    yield tower
    if name := getattr(loaded, "base_model_prefix", ""):  # as in Dinov2ForImageClassification
        yield nn.ModuleDict({name: tower})
    for encoder in tower.children():
        yield encoder
        yield from encoder.children()  # its list of layers


def _known(root: nn.Module, names: Iterable[str]) -> int:
    """How many of the weights belong to a module of `root` that has weights itself."""
    owners = {name for name, module in root.named_modules() if name and any(True for _ in module.parameters(False))}
    return sum(not owners.isdisjoint(_parents(name)) for name in names)


def _parents(name: str) -> set[str]:
    """The modules that a weight may belong to, by its name: `a` and `a.b` for `a.b.weight`."""
    steps = name.split(".")
    return {".".join(steps[:end]) for end in range(1, len(steps))}
