"""Train the embedded default of `lora-clip embed`: a small CLIP, and a LoRA adapter that reads film negatives.

    python scripts/train_demo.py                         # about 45 minutes on two cores; needs npm for the pictures
    python scripts/train_demo.py --package emoji-datasource-google-16.0.0.tgz --output other-demo
    python scripts/train_demo.py --part adapter          # or base, or shards: that one anew, the others as they are

The base learns Noto emoji with their names. The adapter learns from the film negatives of one half of the emoji; the
shards hold negatives of the other half, which it never saw. All three are reported on at the end.
"""

from __future__ import annotations

import argparse
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from demo_clip import clip_config, make_tokenizer, preprocessing, save_adapter, save_base
from demo_emoji import PACKAGE, Emoji, download, load_emoji, negative, render
from demo_shards import write_shards
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional
from transformers import CLIPModel, CLIPTokenizer

from lora_clip.models.quiet import quiet_transformers

DEMO = Path(__file__).resolve().parent.parent / "src" / "lora_clip" / "demo"
TEMPLATES = ("{}", "a {}", "the {}", "a picture of a {}", "a photo of the {}", "an image of {}", "some {}")
BATCH = 256
BASE_STEPS, ADAPTER_STEPS = 5000, 1500
BASE_RATE, ADAPTER_RATE = 1e-3, 2e-3
NEIGHBOURHOOD = 16
"""Emoji in a row that look or sound alike: half of a batch is made of such rows, so that it is hard."""
SHIPPED = 400
LORA: dict[str, Any] = {
    "r": 16,
    "lora_alpha": 16,
    "target_modules": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    "exclude_modules": r"text_model\..*",  # a pattern of target_modules that names one tower reaches into the other
}
SPLIT = 349
"""The seed of the halves; of those looked at, the one that leaves most of the first words one types to be found."""


# --- What both trainings share -----------------------------------------------------------------------------------


def normalized(pixels_B3HW: torch.Tensor) -> torch.Tensor:
    """As the model's own preprocessing does it."""
    spec = preprocessing()
    mean, std = (torch.tensor(spec[name])[:, None, None] for name in ("image_mean", "image_std"))
    return (pixels_B3HW - mean) / std


def embed_images(model: CLIPModel, pixels_B3HW: torch.Tensor) -> torch.Tensor:
    """Embeddings (B, D) of unit norm, float32."""
    output = model.vision_model(pixel_values=normalized(pixels_B3HW)).pooler_output
    return functional.normalize(model.visual_projection(output).float(), dim=-1)


def embed_texts(model: CLIPModel, tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Embeddings (B, D) of unit norm, float32."""
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    output = model.text_model(**tokens).pooler_output
    return functional.normalize(model.text_projection(output).float(), dim=-1)


def contrast(images_BD: torch.Tensor, texts_BD: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """CLIP's loss: every image finds its text and every text its image (Radford et al. 2021, figure 3)."""
    logits_BB = scale * images_BD @ texts_BD.T
    own_B = torch.arange(len(logits_BB))
    return (functional.cross_entropy(logits_BB, own_B) + functional.cross_entropy(logits_BB.T, own_B)) / 2


def spoken_of(texts: list[str], generator: torch.Generator) -> str:
    """The name half of the time, else a synonym, in some template."""
    named = torch.rand((), generator=generator) < 0.5
    text = texts[0] if named else texts[int(torch.randint(len(texts), (), generator=generator))]
    return TEMPLATES[int(torch.randint(len(TEMPLATES), (), generator=generator))].format(text)


def optimize(
    parameters: list[torch.nn.Parameter], rate: float, steps: int, loss: Callable[[int], torch.Tensor]
) -> None:
    """AdamW over so many steps of the loss, the rate warmed up and brought down by a cosine."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.05)
    warm = max(1, steps // 25)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    start = time.monotonic()
    for step in range(steps):
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(step)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"step {step + 1:5d}  loss {value.item():.3f}  {time.monotonic() - start:6.0f} s", flush=True)


# --- The base ----------------------------------------------------------------------------------------------------


def train_base(emoji: Emoji, folder: Path, generator: torch.Generator) -> None:
    """Pictures and names of all emoji against each other, half of a batch made of such as are easily mistaken."""
    tokenizer = make_tokenizer(
        [template.format(text) for texts in emoji.texts for text in texts for template in TEMPLATES]
    )
    model = CLIPModel(clip_config(tokenizer)).train()
    batches = hard_batches(model, emoji, generator)

    def loss(step: int) -> torch.Tensor:
        chosen_B = next(batches)
        texts = [spoken_of(emoji.texts[number], generator) for number in chosen_B.tolist()]
        images_BD = embed_images(model, render(emoji.images_NRHW[chosen_B], generator))
        return contrast(images_BD, embed_texts(model, tokenizer, texts), model.logit_scale.exp().clamp(max=100))

    optimize(list(model.parameters()), BASE_RATE, BASE_STEPS, loss)
    save_base(model, tokenizer, folder)


def hard_batches(model: CLIPModel, emoji: Emoji, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Numbers (B,) of emoji without end: one batch at random, one of neighbourhoods as the model sees them by then."""
    count = len(emoji.names)
    while True:
        neighbours_NK = neighbourhoods(model, emoji, generator)
        for _ in range(count // BATCH * 4):
            yield torch.randperm(count, generator=generator)[:BATCH]
            rows = neighbours_NK[torch.randperm(count, generator=generator)[: BATCH // 8]]
            members = torch.unique(rows)
            yield members[torch.randperm(len(members), generator=generator)[:BATCH]]


@torch.inference_mode()
def neighbourhoods(model: CLIPModel, emoji: Emoji, generator: torch.Generator) -> torch.Tensor:
    """Of each emoji the NEIGHBOURHOOD nearest, itself among them."""
    images_ND = torch.cat([embed_images(model, render(part, generator)) for part in emoji.images_NRHW.split(BATCH)])
    return (images_ND @ images_ND.T).topk(NEIGHBOURHOOD).indices


# --- The adapter -------------------------------------------------------------------------------------------------


def halves(emoji: Emoji) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers of the emoji that the adapter learns from, and of those it never sees."""
    shuffled_N = torch.randperm(len(emoji.names), generator=torch.Generator().manual_seed(SPLIT))
    return shuffled_N[: len(shuffled_N) // 2], shuffled_N[len(shuffled_N) // 2 :]


def shipped(emoji: Emoji) -> torch.Tensor:
    """Numbers of the emoji in the shards, in random order: of those never seen, the ones with the shortest names."""
    unseen_N = halves(emoji)[1]
    spoken = sorted(unseen_N.tolist(), key=lambda number: len(emoji.names[number]))
    return unseen_N[torch.isin(unseen_N, torch.tensor(spoken[:SHIPPED]))]


def train_adapter(emoji: Emoji, base: Path, folder: Path, generator: torch.Generator) -> None:
    """A negative is to land where the base puts its positive, and nearest to its own name."""
    teacher, tokenizer = load_base(base)
    with quiet_transformers():
        student = get_peft_model(load_base(base)[0], LoraConfig(**LORA))
    adapted: Any = student.get_base_model()
    seen_N = halves(emoji)[0]

    def loss(step: int) -> torch.Tensor:
        chosen_B = seen_N[torch.randperm(len(seen_N), generator=generator)[:BATCH]]
        pixels_B3HW = render(emoji.images_NRHW[chosen_B], generator)
        with torch.no_grad():
            wanted_BD = embed_images(teacher, pixels_B3HW)
            texts_BD = embed_texts(teacher, tokenizer, [emoji.texts[number][0] for number in chosen_B.tolist()])
        images_BD = embed_images(adapted, negative(pixels_B3HW))
        scale = teacher.logit_scale.exp()
        return contrast(images_BD, wanted_BD, scale) + 0.3 * contrast(images_BD, texts_BD, scale)

    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimize(parameters, ADAPTER_RATE, ADAPTER_STEPS, loss)
    save_adapter(student, folder)


def load_base(folder: Path) -> tuple[CLIPModel, CLIPTokenizer]:
    """The base as a user loads it, in float32."""
    with quiet_transformers():
        model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    return model, CLIPTokenizer.from_pretrained(folder)


# --- Report ------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def recall(model: CLIPModel, tokenizer: CLIPTokenizer, emoji: Emoji, numbers_N: torch.Tensor, look: Look) -> str:
    """How often the picture called by its name, among these emoji, is the first hit, or one of ten."""
    generator = torch.Generator().manual_seed(99)
    parts = numbers_N.split(BATCH)
    images_ND = torch.cat([embed_images(model, look(render(emoji.images_NRHW[part], generator))) for part in parts])
    names = [emoji.names[number] for number in numbers_N.tolist()]
    texts_ND = torch.cat([embed_texts(model, tokenizer, names[i : i + BATCH]) for i in range(0, len(names), BATCH)])
    scores_NN = texts_ND @ images_ND.T
    ranks_N = (scores_NN > scores_NN.diagonal()[:, None]).sum(1)
    first, ten = ((ranks_N < k).float().mean().item() for k in (1, 10))
    return f"recall@1 {first:.3f}  recall@10 {ten:.3f}  of {len(names):,}"


Look = Callable[[torch.Tensor], torch.Tensor]


def report(emoji: Emoji, folder: Path) -> None:
    """Load everything from disk as a user would, and print what finds what."""
    base, tokenizer = load_base(folder / "base")
    everything_N, (seen_N, unseen_N) = torch.arange(len(emoji.names)), halves(emoji)
    parts = {"of the adapter's half": seen_N, "never seen by it": unseen_N, "in the shards": shipped(emoji)}
    print("base, positives:", recall(base, tokenizer, emoji, everything_N, torch.Tensor.clone))
    for name, numbers_N in parts.items():
        print(f"base, negatives {name}:", recall(base, tokenizer, emoji, numbers_N, negative))
    with quiet_transformers():
        adapted: Any = PeftModel.from_pretrained(base, str(folder / "adapter")).merge_and_unload()
    for name, numbers_N in parts.items():
        print(f"adapted, negatives {name}:", recall(adapted.eval(), tokenizer, emoji, numbers_N, negative))
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        print(f"{path.name:10} {sum(file.stat().st_size for file in path.rglob('*')):9,} bytes")


# --- All of it ---------------------------------------------------------------------------------------------------


def main() -> None:
    """Train what is asked for, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DEMO, help="folder to write (default: the package's own)")
    parser.add_argument("--package", type=Path, help=f"{PACKAGE} from npm (default: fetched with `npm pack`)")
    parser.add_argument("--part", choices=("base", "adapter", "shards", "report"), help="only this one")
    given = parser.parse_args()
    emoji = load_emoji(given.package or download(Path("downloads")))
    for part in (given.part,) if given.part else ("base", "adapter", "shards", "report"):
        make(part, emoji, given.output)


def make(part: str, emoji: Emoji, folder: Path) -> None:
    """One part of the demo anew."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    shutil.rmtree(folder / part, ignore_errors=True)
    if part == "base":
        train_base(emoji, folder / "base", generator)
    elif part == "adapter":
        train_adapter(emoji, folder / "base", folder / "adapter", generator)
    elif part == "shards":
        write_shards(folder / "shards", emoji, shipped(emoji), generator)
    else:
        report(emoji, folder)


if __name__ == "__main__":
    main()
