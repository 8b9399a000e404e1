"""open_clip's weights under transformers' names: what is asked for, and all in the file accounted for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lora_clip.errors import ModelError

WEIGHTS = "open_clip_model.safetensors"
TOWERS = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1": "vision_model.embeddings.patch_embedding",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.transformer.resblocks": "vision_model.encoder.layers",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.proj": "visual_projection.weight",
    "visual.trunk.pos_embed": "vision_model.embeddings.position_embedding.weight",
    "visual.trunk.patch_embed.proj": "vision_model.embeddings.patch_embedding",
    "visual.trunk.blocks": "vision_model.encoder.layers",
    "visual.trunk.norm": "vision_model.post_layernorm",
    "visual.trunk.attn_pool.latent": "vision_model.head.probe",
    "visual.trunk.attn_pool.q": "vision_model.head.attention.q",
    "visual.trunk.attn_pool.kv": "vision_model.head.attention.kv",
    "visual.trunk.attn_pool.proj": "vision_model.head.attention.out_proj",
    "visual.trunk.attn_pool.norm": "vision_model.head.layernorm",
    "visual.trunk.attn_pool.mlp": "vision_model.head.mlp",
    "token_embedding": "text_model.embeddings.token_embedding",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "transformer.resblocks": "text_model.encoder.layers",
    "ln_final": "text_model.final_layer_norm",
    "text_projection": "text_projection.weight",
    "text_projection.weight": "text_model.head.weight",
    "text_projection.bias": "text_model.head.bias",
}
"""open_clip's modules outside of blocks; a text tower of its own (`custom_text`) has `text.` before its names."""
BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
    "attn.proj": "self_attn.out_proj",
}
"""A block's modules, open_clip's own and timm's."""
TOGETHER = re.compile(r"attn\.(?:in_proj_|qkv\.)(weight|bias)")
"""Queries, keys and values in one matrix."""
TRANSPOSED = ("visual_projection.weight", "text_projection.weight")
"""Projections: open_clip multiplies from the right, so they lie the other way."""
IGNORED = re.compile(r"logit_scale|logit_bias|(text\.)?attn_mask|input_resolution|context_length|vocab_size")
"""What embeddings do not depend on."""


def weights_file(folder: Path) -> Path:
    """The file of weights that belongs to an open_clip_config.json. Raises ModelError where that is not clear."""
    if (path := folder / WEIGHTS).is_file():
        return path
    if len(others := sorted(folder.glob("*.safetensors"))) != 1:
        raise ModelError(f"base {folder} has no {WEIGHTS} beside its open_clip_config.json")
    return others[0]


def shapes_of(folder: Path, prefix: str) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights whose names begin with `prefix`, by the rest of their names. Raises ModelError."""
    with _opened(folder) as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - no dict
        return {name.removeprefix(prefix): tuple(file.get_slice(name).get_shape()) for name in names}


def read_weights(folder: Path, modules: Sequence[str], meta: bool = False) -> dict[str, torch.Tensor]:
    """The weights of some modules of transformers' model, float32. Raises ModelError for names that do not map.

    `meta`: their shapes alone.
    """
    weights: dict[str, torch.Tensor] = {}
    with _opened(folder) as file:
        found = {name: _renamed(name) for name in file.keys() if not IGNORED.fullmatch(name)}  # noqa: SIM118
        if unknown := sorted(name for name, renamed in found.items() if renamed is None):
            raise ModelError(
                f"base {folder}: {len(unknown)} of {len(found)} weights of this open_clip model have no counterpart in "
                f"transformers' model, such as {unknown[0]}: embed with open_clip itself, or take the model in "
                "transformers' form where its publisher has one"
            )
        for name, renamed in found.items():
            if renamed is not None and renamed.partition(".")[0] in modules:
                weights.update(_placed(renamed, _read(file, name, meta)))
    return _pooling_head(weights)


def _opened(folder: Path) -> safe_open:
    path = weights_file(folder)
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error


def _read(file: Any, name: str, meta: bool) -> torch.Tensor:
    if meta:
        return torch.empty(file.get_slice(name).get_shape(), device="meta")
    return file.get_tensor(name).float()


def _renamed(name: str) -> str | None:
    """Transformers' name for a weight, in which blocks keep what is not a plain renaming; None where there is none."""
    name = name.removeprefix("text.")
    steps = name.split(".")
    for end in range(len(steps), 0, -1):  # the longest name first
        if (tower := TOWERS.get(".".join(steps[:end]))) is not None:
            rest = steps[end:]
            inner = _in_block(rest) if tower.endswith("encoder.layers") else ".".join(rest)
            return None if inner is None else f"{tower}.{inner}".rstrip(".")
    return None


def _in_block(steps: Sequence[str]) -> str | None:
    """The rest of a weight's name from its block's number on."""
    number, module, last = steps[0], ".".join(steps[1:-1]), steps[-1]
    within = ".".join(steps[1:])
    if TOGETHER.fullmatch(within):
        return f"{number}.{within}"
    return f"{number}.{BLOCK[module]}.{last}" if module in BLOCK else None


def _placed(name: str, weight: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """A weight as transformers keeps it: split, turned, or as it is."""
    block, _, within = name.partition(".attn.")
    if found := TOGETHER.fullmatch(f"attn.{within}"):
        for letter, one in zip("qkv", weight.chunk(3), strict=True):
            yield f"{block}.self_attn.{letter}_proj.{found[1]}", one.contiguous()
    elif name in TRANSPOSED:
        yield name, weight.T.contiguous()
    else:
        yield name, weight[0] if name.endswith("position_embedding.weight") and weight.ndim == 3 else weight


def _pooling_head(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """SigLIP's attention pooling: timm has queries apart from keys and values, torch's attention all in one."""
    head = "vision_model.head.attention"
    for kind in ("weight", "bias"):
        parts = [weights.pop(f"{head}.{name}.{kind}", None) for name in ("q", "kv")]
        if (query := parts[0]) is not None and (key_value := parts[1]) is not None:
            weights[f"{head}.in_proj_{kind}"] = torch.cat([query, key_value])
    return weights
