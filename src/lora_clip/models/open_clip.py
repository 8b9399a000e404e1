"""open_clip's checkpoints of ViT CLIPs and SigLIPs, run by transformers' own models: nothing of open_clip is needed."""

from __future__ import annotations

import string
from collections.abc import Sequence
from html import unescape
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from lora_clip.errors import ModelError
from lora_clip.models.clip import Clip, MetaClip2
from lora_clip.models.generic import TOKENIZER_MARKS, Family, load_tokenizer, load_tower
from lora_clip.models.open_clip_config import Described, describe, pixels_of, refusal
from lora_clip.models.open_clip_weights import read_weights
from lora_clip.models.quiet import quiet_transformers
from lora_clip.models.siglip import Siglip
from lora_clip.types import PreprocessSpec

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""What open_clip takes where its config says nothing: OpenAI's."""
INTERPOLATION = {"bicubic": "bicubic", "bilinear": "bilinear", "random": "bicubic"}
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


class OpenClip(Family):
    """What is common to open_clip's models: everything is in open_clip_config.json, under names of its own."""

    config_class: ClassVar[str]

    def load_spec(self, folder: Path) -> PreprocessSpec:
        """How images become pixels, as open_clip's own evaluation has it. Raises ModelError."""
        size = describe(folder).vision["image_size"]
        given = pixels_of(folder)
        filter_, mode = given.get("interpolation") or "bicubic", given.get("resize_mode") or "shortest"
        if filter_ not in INTERPOLATION or mode not in ("shortest", "longest", "squash"):
            raise refusal(folder, f"preprocess_cfg with {filter_} and {mode}, which open_clip itself does not know")
        mean, std = (tuple(map(float, given.get(name) or usual)) for name, usual in (("mean", MEAN), ("std", STD)))
        resize = (size, size) if mode == "squash" else size
        return PreprocessSpec(
            *(resize, (size, size), INTERPOLATION[filter_], 1 / 255, mean, std),
            longest=mode == "longest",
            centre="round",
        )

    def load_vision(self, folder: Path) -> nn.Module:
        """The tower that makes image embeddings. Raises ModelError for what transformers' model does not have."""
        return self._load(folder, self.vision_class, "vision", self.vision_modules)

    def load_text(self, folder: Path) -> nn.Module:
        """The tower that makes text embeddings. Raises ModelError for what transformers' model does not have."""
        assert self.text_class is not None, "all have texts"
        return self._load(folder, self.text_class, "text", self.text_modules)

    def _load(self, folder: Path, class_name: str, tower: str, modules: Sequence[str]) -> nn.Module:
        with quiet_transformers():  # it warns of tokens that no embedding depends on
            config = self._config(describe(folder), tower)
        weights = read_weights(folder, modules)
        return load_tower(folder, class_name, lambda _: config, f"open_clip's {self.name} {tower} model", weights)

    def _config(self, described: Described, tower: str) -> Any:
        """The config of a tower, as transformers has it; projected to the whole model's width."""
        import transformers

        towers = {"vision_config": described.vision, "text_config": described.text}
        whole = getattr(transformers, self.config_class)(**towers, projection_dim=described.width)
        config = getattr(whole, f"{tower}_config")
        config.projection_dim = described.width
        return config

    def shapes(self, folder: Path) -> dict[str, tuple[int, ...]]:
        """The shapes of the weights, by transformers' names; what has none there is refused when weights are read."""
        modules = (*self.vision_modules, *self.text_modules)
        return {name: tuple(weight.shape) for name, weight in read_weights(folder, modules, meta=True).items()}

    def has_text(self, folder: Path) -> bool:
        """Every open_clip model that is read here has a text tower."""
        return True

    def load_tokenizer(self, folder: Path) -> Any:
        """The tokenizer beside the weights, with the cleaning that open_clip does before. Raises ModelError."""
        if not any((folder / name).is_file() for name in TOKENIZER_MARKS):
            where = describe(folder).tokenizer or "openai/clip-vit-large-patch14"
            raise ModelError(
                f"base {folder} has no tokenizer (tokenizer.json), so only images can be embedded with it: for texts "
                f"save that of {where} beside the weights "
                f"(AutoTokenizer.from_pretrained({where!r}).save_pretrained({str(folder)!r}))"
            )
        # its own config says which class it is, whichever text tower it was trained with
        said = (folder / "tokenizer_config.json").is_file()
        found = load_tokenizer(folder, "AutoTokenizer" if said else self.tokenizer_class)
        return CleaningTokenizer(found, describe(folder).cleaning)


class OpenClipClip(OpenClip, Clip):
    """CLIP's two towers."""


class OpenClipMetaClip2(OpenClip, MetaClip2):
    """CLIP's two towers, the text's pooled at a token that is not the last of the vocabulary (the worldwide models)."""


class OpenClipSiglip(OpenClip, Siglip):
    """SigLIP's two towers, the vision one named as timm does."""

    config_class = "SiglipConfig"

    def _config(self, described: Described, tower: str) -> Any:
        import transformers

        whole: Any = transformers.SiglipConfig(vision_config=described.vision, text_config=described.text)
        return getattr(whole, f"{tower}_config")


class CleaningTokenizer:
    """A tokenizer of texts that are cleaned before, as open_clip cleans them (but for ftfy, which mends encodings)."""

    def __init__(self, tokenizer: Any, cleaning: str) -> None:
        self.tokenizer, self.cleaning = tokenizer, cleaning
        self.model_max_length = tokenizer.model_max_length

    def __call__(self, texts: Sequence[str], **options: Any) -> Any:
        """What the tokenizer makes of the cleaned texts."""
        return self.tokenizer([clean(text, self.cleaning) for text in texts], **options)


def clean(text: str, how: str) -> str:
    """A text as open_clip cleans it: `whitespace`, `lower`, or `canonicalize`, which drops punctuation too."""
    text = unescape(unescape(text))
    if how == "canonicalize":
        text = text.replace("_", " ").translate(WITHOUT_PUNCTUATION)
    text = " ".join(text.split())
    return text if how == "whitespace" else text.lower()
