"""Turn what CLIP-LoRA (MaxZanella) saved with loralib into a folder that PEFT, and this project, reads.

    python examples/clip_lora.py lora_weights.pt openai/clip-vit-base-patch16 /models/my-lora

The .pt is read with weights_only: tensors and numbers, and nothing in it is run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

FIRST = {
    "all": 0,
    "bottom": 0,
    "half-bottom": 0,
    "mid": 4,
    "half-up": 6,
    "up": 8,
    "top3": 9,
    "top2": 10,
    "top1": 11,
    "top": 11,
}
"""The first layer of each of CLIP-LoRA's positions; the others follow it."""
TEXT_LAYERS = 12
NAMES = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "proj": "out_proj"}
PREFIX = "base_model.model."


def convert(saved: dict[str, Any], base: str, folder: Path) -> None:
    """Write the adapter's folder, named after the modules of transformers' CLIPModel."""
    about, found = saved["metadata"], saved["weights"]
    weights = {}
    for number, layer in enumerate(layers_of(about, len(found))):
        for name, pair in found[f"layer_{number}"].items():
            for matrix in ("lora_A", "lora_B"):
                weights[f"{PREFIX}{layer}.self_attn.{NAMES[name]}.{matrix}.weight"] = pair[f"w_{matrix}"].contiguous()
    config = {
        "peft_type": "LORA",
        "auto_mapping": {"base_model_class": "CLIPModel", "parent_library": "transformers.models.clip.modeling_clip"},
        "base_model_name_or_path": base,
        "r": about["r"],
        "lora_alpha": about["alpha"],
        "use_rslora": True,  # CLIP-LoRA scales by alpha / sqrt(r)
        "target_modules": sorted({name.removeprefix(PREFIX).partition(".lora_")[0] for name in weights}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))
    save_file(weights, folder / "adapter_model.safetensors")


def layers_of(about: dict[str, Any], count: int) -> list[str]:
    """The layer that each `layer_N` of the file is; those of the text tower come first."""
    encoder, first = about["encoder"], FIRST[about["position"]]
    both = TEXT_LAYERS if about["position"] == "all" else count // 2
    text = {"text": count, "vision": 0, "both": both}[encoder]
    towers = {"text_model": text, "vision_model": count - text}
    return [f"{tower}.encoder.layers.{first + layer}" for tower, depth in towers.items() for layer in range(depth)]


if __name__ == "__main__":
    convert(torch.load(sys.argv[1], weights_only=True, map_location="cpu"), sys.argv[2], Path(sys.argv[3]))
