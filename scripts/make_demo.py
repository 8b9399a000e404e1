"""Make the embedded default of `python predict.py`: pictures, a small CLIP model and a LoRA adapter, no network needed.

    python scripts/make_demo.py                          # writes src/lora_clip/demo, the same bytes every time
    python scripts/make_demo.py --output other-demo --count 80 --seed 1

The pictures are drawn by `demo_pictures.py`. The model is a real `transformers.CLIPModel`, the adapter a real PEFT one.
Their weights are random: enough to run every path of the job, and scaled so that different pictures get different
embeddings.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import tarfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from demo_pictures import Picture, draw_pictures
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

DEMO = Path(__file__).resolve().parent.parent / "src" / "lora_clip" / "demo"
SHARDS = 8
PROMPTS = ("a photo of a", "a picture of the", "a drawing of some", "an image with", "this is not")
START, END = "<|startoftext|>", "<|endoftext|>"
CONTEXT = 77  # tokens of a text
IMAGE_SIZE = 64  # pixels on a side

README = """\
# The embedded demo

What `python predict.py` runs when it is given nothing else: no network, no download.

- `shards/`: {shards} WebDataset shards with {count} drawn pictures, each with a caption (`.txt`) and some metadata
  (`.json`). Most are JPEG, some PNG (one with a palette, one grayscale), a few WebP.
- `base/`: a small CLIP model with random weights, in the layout of any CLIP checkpoint on the Hugging Face hub,
  with its preprocessing spec and its tokenizer. float16; load it with `dtype=torch.float32` for work on a CPU.
- `adapter/`: a PEFT LoRA adapter for it, also random. Its `base_model_name_or_path` is relative to its own folder.

Made by `python scripts/make_demo.py`, which writes the same bytes again (with the same versions of Pillow and torch).
The pictures are drawn by that script, nothing here comes from elsewhere. Licence: Apache-2.0, like the project.
"""


# --- Pictures: WebDataset shards ---------------------------------------------------------------------------------


def extensions(pictures: list[Picture]) -> list[str]:
    """Which picture is stored in which format: mostly JPEG, some PNG and WebP."""
    return ["webp" if i % 50 == 7 else "png" if i % 25 == 3 else "jpg" for i in range(len(pictures))]


def image_bytes(image: Image.Image, extension: str) -> bytes:
    """The picture as a file of this format."""
    options: dict[str, dict[str, Any]] = {
        "jpg": {"format": "JPEG", "quality": 85, "optimize": True},
        "webp": {"format": "WEBP", "quality": 85, "method": 6},
        "png": {"format": "PNG", "optimize": True},
    }
    buffer = io.BytesIO()
    image.save(buffer, **options[extension])
    return buffer.getvalue()


def first_with(pictures: list[Picture], words: str, fallback: int) -> int:
    """The number of the first picture whose caption has these words."""
    return next((i for i, picture in enumerate(pictures) if words in picture.caption), min(fallback, len(pictures) - 1))


def encoded(pictures: list[Picture]) -> list[tuple[str, bytes]]:
    """(extension, bytes) of every picture; one night is a grayscale PNG, one pattern of stripes a palette PNG."""
    images, kinds = [picture.image for picture in pictures], extensions(pictures)
    gray, palette = first_with(pictures, "full moon", 0), first_with(pictures, "stripes", 1)
    images[gray], kinds[gray] = images[gray].convert("L"), "png"
    images[palette], kinds[palette] = images[palette].quantize(64), "png"
    return [(kind, image_bytes(image, kind)) for image, kind in zip(images, kinds, strict=True)]


def metadata(key: str, extension: str, picture: Picture) -> bytes:
    """The sample's `.json`."""
    fields = {
        "caption": picture.caption,
        "url": f"https://example.org/demo/{key}.{extension}",
        "kind": picture.kind,
        "colors": picture.colors,
    }
    return json.dumps(fields).encode()


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add one file, with nothing in its header that changes from run to run."""
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = len(data), 0, 0o644
    tar.addfile(member, io.BytesIO(data))


def write_shards(folder: Path, pictures: list[Picture]) -> None:
    """Write the pictures with captions and metadata as `00000.tar`, `00001.tar`, …, in order."""
    folder.mkdir(parents=True)
    samples = list(zip(pictures, encoded(pictures), strict=True))
    for shard in range(SHARDS):
        first, last = (round(len(samples) * i / SHARDS) for i in (shard, shard + 1))
        with tarfile.open(folder / f"{shard:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number, (picture, (extension, data)) in enumerate(samples[first:last]):
                key = f"{shard:05d}{number:04d}"
                add_member(tar, f"{key}.{extension}", data)
                add_member(tar, f"{key}.txt", picture.caption.encode())
                add_member(tar, f"{key}.json", metadata(key, extension, picture))


# --- Model: tokenizer --------------------------------------------------------------------------------------------


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


def make_tokenizer(captions: list[str], limit: int = 600) -> CLIPTokenizer:
    """A CLIP tokenizer that knows the captions' words whole and spells all others."""
    merges: list[Any] = learn_merges([*captions, *PROMPTS], limit)  # CLIPTokenizer takes pairs, its hint says strings
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


# --- Model: CLIP -------------------------------------------------------------------------------------------------


def clip_config(tokenizer: CLIPTokenizer) -> CLIPConfig:
    """A CLIP small enough to keep in the repository: 2 million parameters."""
    shared: dict[str, Any] = {"projection_dim": 128, "hidden_act": "quick_gelu"}
    vision = CLIPVisionConfig(
        image_size=IMAGE_SIZE,
        patch_size=16,
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=3,
        **shared,
    )
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=CONTEXT,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **shared,
    )
    return CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=128)


# How strong each part is, in units of 1 / sqrt(inputs). The class token starts as a constant, which would make all
# pictures alike: it and the positions are weak, and what attention gathers from the patches is strong.
GAINS = {
    "class_embedding": 0.05,
    "position_embedding": 0.3,
    "v_proj": 2.0,
    "out_proj": 2.0,
    "k_proj": 1.2,
    "q_proj": 1.2,
}


def randomize(model: CLIPModel, seed: int) -> None:
    """Give the model seeded random weights: normal matrices, no biases, norms of one."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 0 or "norm" in name:
            continue  # the logit scale and the norms stay as they are made
        gain = next((gain for part, gain in GAINS.items() if part in name), 1.0)
        inputs = parameter[0].numel() if parameter.ndim > 1 and "embedding.weight" not in name else 1
        inputs = parameter[0].numel() if "patch_embedding" in name else inputs
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.data = drawn * (0.0 if name.endswith("bias") else gain / inputs**0.5)


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


def write_base(folder: Path, captions: list[str], seed: int) -> None:
    """Write the base model with its tokenizer and preprocessing, weights in float16."""
    tokenizer = make_tokenizer(captions)
    model = CLIPModel(clip_config(tokenizer))
    randomize(model, seed)
    model.half().save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    write_json(folder / "preprocessor_config.json", preprocessing())


# --- Adapter -----------------------------------------------------------------------------------------------------

LORA_STRENGTH = 0.1  # standard deviation of the LoRA B matrices: cosine between base and adapted of about 0.85


def write_adapter(folder: Path, base: Path, seed: int) -> None:
    """Write a LoRA adapter of the base whose B matrices are not zero, as after training."""
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], lora_dropout=0.0, bias="none")
    model = get_peft_model(CLIPModel.from_pretrained(base, dtype=torch.float32), config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            strength = LORA_STRENGTH if "lora_B" in name else parameter.shape[1] ** -0.5
            parameter.data = strength * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    tidy_adapter(folder)


def tidy_adapter(folder: Path) -> None:
    """Remove what differs between machines and runs: the path of the base, the order of sets, the model card."""
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config |= {"base_model_name_or_path": "../base", "target_modules": sorted(config["target_modules"])}
    write_json(path, dict(sorted(config.items())))
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


# --- Check: what was written loads and tells pictures apart ------------------------------------------------------


def stored_images(folder: Path) -> list[Image.Image]:
    """All pictures of the shards, in order, as RGB."""
    images = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = [member for member in tar if not member.name.endswith((".txt", ".json"))]
            files = [tar.extractfile(member) or io.BytesIO() for member in members]
            images += [Image.open(file).convert("RGB") for file in files]
    return images


@torch.inference_mode()
def embed(model: CLIPModel | PeftModel, pixels_BCHW: torch.Tensor) -> torch.Tensor:
    """Embeddings of unit norm, (B, D)."""
    output = model.get_image_features(pixel_values=pixels_BCHW)
    features = output if isinstance(output, torch.Tensor) else output.pooler_output
    return torch.nn.functional.normalize(features, dim=-1)


def quantiles(values: torch.Tensor) -> str:
    """A distribution in one line."""
    points = torch.quantile(values, torch.tensor([0.0, 0.05, 0.5, 0.95, 1.0])).tolist()
    return "min {:.3f}  5% {:.3f}  median {:.3f}  95% {:.3f}  max {:.3f}".format(*points)


def between(embeddings_BD: torch.Tensor) -> torch.Tensor:
    """The cosines of all pairs of different pictures."""
    rows, columns = torch.triu_indices(len(embeddings_BD), len(embeddings_BD), offset=1)
    return (embeddings_BD @ embeddings_BD.T)[rows, columns]


def report(folder: Path) -> None:
    """Load everything from disk as a user would, and print how far apart the embeddings are."""
    images = stored_images(folder / "shards")
    pixels = CLIPImageProcessor.from_pretrained(folder / "base")(images, return_tensors="pt")["pixel_values"]
    model = CLIPModel.from_pretrained(folder / "base", dtype=torch.float32).eval()
    base = embed(model, pixels)
    adapted = embed(PeftModel.from_pretrained(model, folder / "adapter").eval(), pixels)
    print(f"{len(images)} pictures, {tuple(pixels.shape)} -> {tuple(base.shape)}")
    print("cosine between pictures, base:   ", quantiles(between(base)))
    print("cosine between pictures, adapted:", quantiles(between(adapted)))
    print("cosine base to adapted:          ", quantiles((base * adapted).sum(-1)))
    for path in sorted(folder.iterdir()):
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        print(f"{path.name:10} {sum(file.stat().st_size for file in files):9,} bytes in {len(files)} files")


# --- All of it ---------------------------------------------------------------------------------------------------


def make_demo(folder: Path, count: int, seed: int) -> None:
    """Write the whole demo anew."""
    pictures = draw_pictures(count, seed)
    for part in ("shards", "base", "adapter"):
        shutil.rmtree(folder / part, ignore_errors=True)
    write_shards(folder / "shards", pictures)
    write_base(folder / "base", [picture.caption for picture in pictures], seed)
    write_adapter(folder / "adapter", folder / "base", seed + 1)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes files that only their owner can read
    (folder / "README.md").write_text(README.format(shards=SHARDS, count=count), encoding="utf-8")


def main() -> None:
    """Make the demo and print what was made."""
    parser = argparse.ArgumentParser(
        description="Make the embedded demo: pictures, a small CLIP model, a LoRA adapter."
    )
    parser.add_argument("--output", type=Path, default=DEMO, help="folder to write (default: the package's own)")
    parser.add_argument("--count", type=int, default=400, help="number of pictures")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other pictures and weights")
    arguments = parser.parse_args()
    make_demo(arguments.output, arguments.count, arguments.seed)
    report(arguments.output)


if __name__ == "__main__":
    main()
