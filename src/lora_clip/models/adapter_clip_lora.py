"""What CLIP-LoRA (MaxZanella/CLIP-LoRA) saves, as a LoRA of transformers' CLIPModel.

Its file is a pickle of loralib's matrices, layer by layer, and of what it was trained with. It is read once it is a
safetensors file (`CONVERT`): `layer_0.q_proj.w_lora_A`, …, and its metadata in the header.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from lora_clip.errors import AdapterError

if TYPE_CHECKING:
    import torch

CONVERT = """\
import json, sys, torch
from safetensors.torch import save_file

saved = torch.load(sys.argv[1], weights_only=True, map_location="cpu")
pairs = ((f"{layer}.{name}", pair) for layer, own in saved["weights"].items() for name, pair in own.items())
flat = {f"{name}.{matrix}": weight.contiguous() for name, pair in pairs for matrix, weight in pair.items()}
save_file(flat, sys.argv[1].removesuffix(".pt") + ".safetensors", {"clip_lora": json.dumps(saved["metadata"])})"""
"""A script that turns CLIP-LoRA's .pt into the file that is read here; weights_only runs nothing that is in it."""
HEADER = "clip_lora"
FIRST = {
    **dict.fromkeys(("all", "bottom", "half-bottom"), 0),
    "mid": 4,
    "half-up": 6,
    "up": 8,
    "top3": 9,
    "top2": 10,
    **dict.fromkeys(("top1", "top"), 11),
}
"""The first layer of each of CLIP-LoRA's positions; the others follow it."""
TEXT_LAYERS = 12
NAMES = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "proj": "out_proj"}
KEY = re.compile(r"layer_(?P<layer>\d+)\.(?P<module>\w+)\.w_(?P<matrix>lora_[AB])")
PREFIX = "base_model.model."


def is_of_clip_lora(path: Path) -> bool:
    """Whether an adapter is a file that came of CLIP-LoRA's."""
    return path.is_file() and path.suffix == ".safetensors"


def config_of(path: Path) -> dict[str, Any]:
    """The adapter_config.json that PEFT would have written. Raises AdapterError."""
    about, weights = _read(path)
    modules = {name.removeprefix(PREFIX).partition(".lora_")[0] for name in _renamed(path, about, weights)}
    return {
        "peft_type": "LORA",
        "auto_mapping": {"base_model_class": "CLIPModel", "parent_library": "transformers.models.clip.modeling_clip"},
        "base_model_name_or_path": None,
        "r": about["r"],
        "lora_alpha": about["alpha"],
        "use_rslora": True,  # it scales by alpha / sqrt(r)
        "target_modules": sorted(modules),
    }


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    """The weights under the names that PEFT gives those of a CLIPModel. Raises AdapterError."""
    return _renamed(path, *_read(path))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What a file was trained with, and its weights."""
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
            about = json.loads((file.metadata() or {}).get(HEADER, "null"))
    except (OSError, ValueError, SafetensorError) as error:
        raise AdapterError(f"adapter {path} cannot be read: {error}") from error
    wanted = {"r", "alpha", "encoder", "position"}
    if not isinstance(about, dict) or not wanted <= about.keys():
        raise AdapterError(
            f"adapter {path} is a file without CLIP-LoRA's metadata ({', '.join(sorted(wanted))} as JSON in its "
            f"header, under {HEADER}): docs/adapters.md has the lines that make it. PEFT's adapters are folders"
        )
    return about, weights


def _renamed(path: Path, about: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {name: KEY.fullmatch(name) for name in weights}
    numbers = sorted({int(key["layer"]) for key in found.values() if key})
    unknown = sorted(name for name, key in found.items() if key is None or key["module"] not in NAMES)
    if unknown or not numbers or numbers != list(range(len(numbers))):
        raise AdapterError(
            f"adapter {path} has weights that CLIP-LoRA does not write, or lacks layers: "
            f"{unknown[0] if unknown else f'layers {numbers}'} (layer_0.q_proj.w_lora_A and its like are expected)"
        )
    layers, renamed = _layers(path, about, len(numbers)), {}
    for name, key in found.items():
        assert key is not None, "looked at above"
        module = f"{layers[int(key['layer'])]}.self_attn.{NAMES[key['module']]}"
        renamed[f"{PREFIX}{module}.{key['matrix']}.weight"] = weights[name]
    return renamed


def _layers(path: Path, about: Mapping[str, Any], count: int) -> list[str]:
    """The layer that each `layer_N` of the file is; those of the text tower come first."""
    encoder, position = about["encoder"], about["position"]
    if encoder not in ("text", "vision", "both") or position not in FIRST:
        raise AdapterError(f"adapter {path}: CLIP-LoRA's encoder={encoder}, position={position} are not known here")
    both = TEXT_LAYERS if position == "all" else count // 2
    text = {"text": count, "vision": 0, "both": both}[encoder]
    towers = {"text_model": text, "vision_model": count - text}
    return [
        f"{tower}.encoder.layers.{FIRST[position] + one}" for tower, depth in towers.items() for one in range(depth)
    ]
