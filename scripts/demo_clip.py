"""The small CLIP of the embedded demo: its tokenizer, its shape, and its files as the Hugging Face hub has them."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

START, END = "<|startoftext|>", "<|endoftext|>"
CONTEXT = 77
"""Tokens of a text, as in every CLIP."""
IMAGE_SIZE = 64
"""Pixels on a side."""
MERGES = 3000
WIDTH = 128
"""Of the embeddings."""


# --- Tokenizer ---------------------------------------------------------------------------------------------------


def byte_alphabet() -> list[str]:
    """The 256 characters that stand for the bytes in byte-level BPE, in CLIP's order."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in shown] + [chr(256 + i) for i in range(256 - len(shown))]


def merged(parts: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """The word's parts with every occurrence of the pair joined."""
    out: list[str] = []
    for part in parts:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return tuple(out)


def learn_merges(texts: list[str], limit: int) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent first, ties in alphabetical order, until every word is one token or `limit`."""
    counts = Counter(word for text in texts for word in text.lower().split())
    words = {word: (*word[:-1], word[-1] + "</w>") for word in counts}
    merges: list[tuple[str, str]] = []
    while len(merges) < limit:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in words.items():
            pairs.update(dict.fromkeys(pairwise(parts), counts[word]))
        if not pairs:
            break
        merges.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))
        words = {word: merged(parts, merges[-1]) for word, parts in words.items()}
    return merges


def make_tokenizer(texts: list[str]) -> CLIPTokenizer:
    """A CLIP tokenizer that knows the frequent words of the texts whole and spells all others."""
    merges: list[Any] = learn_merges(texts, MERGES)  # CLIPTokenizer takes pairs, its hint says strings
    alphabet = byte_alphabet()
    joined = dict.fromkeys("".join(pair) for pair in merges)
    vocabulary = [*alphabet, *(char + "</w>" for char in alphabet), *joined, START, END]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(vocabulary)},
        merges=merges,
        model_max_length=CONTEXT,
    )


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Save `tokenizer.json`, and `vocab.json` and `merges.txt` for readers that want these."""
    tokenizer.save_pretrained(folder)
    spec = json.loads((folder / "tokenizer.json").read_text())["model"]
    write_json(folder / "vocab.json", spec["vocab"])
    merges = [" ".join(pair) for pair in spec["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")


# --- Model -------------------------------------------------------------------------------------------------------


def clip_config(tokenizer: CLIPTokenizer) -> CLIPConfig:
    """A CLIP small enough to keep in the repository and to train on two cores in half an hour."""
    shared: dict[str, Any] = {"projection_dim": WIDTH, "hidden_act": "quick_gelu"}
    vision = CLIPVisionConfig(
        image_size=IMAGE_SIZE,
        patch_size=16,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        **shared,
    )
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=CONTEXT,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **shared,
    )
    return CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH)


def preprocessing() -> dict[str, Any]:
    """The `preprocessor_config.json` of a classic CLIP checkpoint, at this model's size."""
    return {
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": IMAGE_SIZE},
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write one JSON file."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_base(model: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """The model as any CLIP checkpoint on the hub, weights in float16."""
    model.half().save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    write_json(folder / "preprocessor_config.json", preprocessing())
    readable(folder)


def save_adapter(model: PeftModel, folder: Path) -> None:
    """The adapter as PEFT saves it, in float16, without what differs between machines and runs."""
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config |= {"base_model_name_or_path": "../base", "target_modules": sorted(config["target_modules"])}
    write_json(path, dict(sorted(config.items())))
    weights = {name: weight.half() for name, weight in load_file(folder / "adapter_model.safetensors").items()}
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    readable(folder)


def readable(folder: Path) -> None:
    """Let all read the weights: safetensors writes files for their owner only."""
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)
