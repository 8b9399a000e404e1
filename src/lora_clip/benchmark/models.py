"""Models with random weights of true architecture: as fast as trained ones, and there without a download."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lora_clip.demo import DEMO
from lora_clip.io.atomic import temporary_name
from lora_clip.models.hub import TOKENIZER_FILES
from lora_clip.models.quiet import quiet_transformers

RANDOM: dict[str, dict[str, Any]] = {
    "vit-b-32": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 32},
    "vit-l-14": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14},
    "one-layer": {"hidden_size": 768, "num_hidden_layers": 1, "num_attention_heads": 12, "patch_size": 32},
}
"""The vision towers; `one-layer` is ViT-B/32 with one layer: next to decoding, what a fast GPU makes of any of them."""
TINY: dict[str, dict[str, Any]] = {
    "tiny-32": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 32},
    "tiny-14": {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 14},
}
"""To try a benchmark with, on images of true size."""
PROJECTION = {"vit-b-32": 512, "vit-l-14": 768, "one-layer": 512, "tiny-32": 32, "tiny-14": 32}
TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
"""The text tower is not run, so it is small."""
RANK, TARGETS = 16, ["q_proj", "k_proj", "v_proj", "out_proj"]


def shape_of(name: str) -> tuple[dict[str, Any], int]:
    """A vision tower's numbers as transformers calls them, and the width of its embeddings."""
    return {**RANDOM, **TINY}[name], PROJECTION[name]


def make_random(folder: Path, name: str) -> tuple[Path, Path]:
    """The folders of a base and a LoRA adapter below `folder`, made from a fixed seed where they are not there yet."""
    home = folder / name
    if not home.exists():
        unfinished = temporary_name(home)
        shutil.rmtree(unfinished, ignore_errors=True)
        with quiet_transformers():
            _save(unfinished, home, name)
        unfinished.replace(home)
    return home / "base", home / "adapter"


def _save(folder: Path, home: Path, name: str) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    shape, projection = shape_of(name)
    vision = {**shape, "intermediate_size": 4 * shape["hidden_size"], "image_size": 224}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(vision_config=vision, text_config=TEXT, projection_dim=projection))
        model.save_pretrained(folder / "base")
        CLIPImageProcessor().save_pretrained(folder / "base")
        for pattern in TOKENIZER_FILES:  # sentence-transformers asks for one
            for file in (DEMO / "base").glob(pattern):
                shutil.copy(file, folder / "base")
        adapted: Any = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS))
        for weight_name, weight in adapted.named_parameters():
            if "lora_B" in weight_name:
                torch.nn.init.normal_(weight, std=0.02)
        adapted.peft_config["default"].base_model_name_or_path = str(home / "base")
        adapted.save_pretrained(folder / "adapter", save_embedding_layers=False)  # "auto" looks for the base
