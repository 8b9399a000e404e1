"""A family of models run by transformers' own classes: the road that always works.

A family subclasses `Family` and says what is its own: class names, and whatever differs from the methods below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from torch import nn

from lora_clip.errors import ModelError
from lora_clip.models.base import read_config
from lora_clip.models.preprocess import load_spec
from lora_clip.models.quiet import quiet_transformers
from lora_clip.types import PreprocessSpec

TOKENIZER_MARKS = (
    *("tokenizer.json", "vocab.json", "vocab.txt"),
    *("spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
)
"""A folder with one of these files has a tokenizer."""


POOLED = "this is a vision model alone: an embedding is its pooled output, and only images can be searched for"
"""The note of families without a text tower and a projection."""


PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d)
"""The modules that are products with weights; `autocast` computes others in float32, or in the dtype of what enters."""


class UnfitTowerError(Exception):
    """A network cannot stand for a vision tower, and why: what follows "the fast tower …"."""


class Family:
    """How models of one kind are loaded, run and adapted; everything in float32.

    `vision_modules` and `text_modules` are the names, in the family's whole model, of the modules that make the
    embeddings of images and of texts, the tower first: by them an adapter's weights are told apart, and placed.
    """

    name: ClassVar[str]
    vision_class: ClassVar[str]
    text_class: ClassVar[str | None] = None
    tokenizer_class: ClassVar[str] = "AutoTokenizer"
    vision_modules: ClassVar[tuple[str, ...]] = ("vision_model", "visual_projection")
    text_modules: ClassVar[tuple[str, ...]] = ("text_model", "text_projection")
    causal_text: ClassVar[bool] = False
    """Whether in the text tower no token sees those behind it, so that padding there needs no mask."""
    any_size: ClassVar[bool] = False
    """Whether the tower takes images of other sizes than its config's `image_size`."""
    note: ClassVar[str | None] = None
    """What a user may want to know of this kind of embedding: a line beside the job's opening."""
    accelerator: ClassVar[type[nn.Module] | None] = None
    """A faster network with PlainTower's methods, called with the vision tower and the spec of its pixels.

    It takes the tower's weights over, or raises UnfitTowerError; it is used only where it gives the same embeddings.
    """

    def load_spec(self, folder: Path) -> PreprocessSpec:
        """How a checkpoint's images become pixels. Raises ModelError."""
        return load_spec(folder)

    def load_vision(self, folder: Path) -> nn.Module:
        """The tower that makes image embeddings. Raises ModelError for another model or a part of one."""
        whole = load_tower(folder, self.vision_class, self.vision_config, f"a {self.name} vision model")
        return without(whole, self.text_modules)

    def load_text(self, folder: Path) -> nn.Module:
        """The tower that makes text embeddings. Raises ModelError for another model or a part of one."""
        assert self.text_class is not None, "ask has_text first"
        whole = load_tower(folder, self.text_class, self.text_config, f"a {self.name} text model")
        return without(whole, self.vision_modules)

    def has_text(self, folder: Path) -> bool:
        """Whether a checkpoint holds a text tower too."""
        return self.text_class is not None and "text_config" in read_config(folder)

    def shapes(self, folder: Path) -> dict[str, tuple[int, ...]]:
        """The shapes of a checkpoint's weights, by their names in the whole model, from the files' headers alone."""
        found: dict[str, tuple[int, ...]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no dict
        return found

    def vision_config(self, folder: Path) -> Any:
        """The config to load the vision tower with; None is what transformers takes by itself."""
        return None

    def text_config(self, folder: Path) -> Any:
        """The config to load the text tower with; None is what transformers takes by itself."""
        return None

    def embed_images(self, vision: nn.Module, values_BCHW: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D), of any norm, of normalised pixels."""
        return embedding_of(getattr(vision, "get_image_features", vision)(pixel_values=values_BCHW))

    def embed_texts(self, text: nn.Module, tokens: Any) -> torch.Tensor:
        """Embeddings (N, D), of any norm, of what `tokenize` gave."""
        return embedding_of(getattr(text, "get_text_features", text)(**tokens))

    def load_tokenizer(self, folder: Path) -> Any:
        """The tokenizer of the text tower. Raises ModelError."""
        if not any((folder / name).is_file() for name in TOKENIZER_MARKS):
            raise ModelError(f"base {folder} has no tokenizer (tokenizer.json): only images can be searched for")
        return load_tokenizer(folder, self.tokenizer_class)

    def context(self, text: nn.Module, tokenizer: Any) -> int:
        """After how many tokens a text is cut: where the tower's positions end, or earlier as the tokenizer has it."""
        config: Any = text.config
        return min(getattr(config, "text_config", config).max_position_embeddings, tokenizer.model_max_length)

    def tokenize(self, tokenizer: Any, texts: Sequence[str], context: int) -> Any:
        """What the text tower takes of texts, each cut after `context` tokens."""
        return tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=context,
            return_tensors="pt",
            return_attention_mask=True,
        )


class PlainTower(nn.Module):
    """Transformers' own vision tower on uint8 pixels."""

    def __init__(self, family: Family, vision: nn.Module, spec: PreprocessSpec) -> None:
        super().__init__()
        self.family, self.vision, self.scale = family, vision, spec.scale
        self.device = next(vision.parameters()).device
        self.products: torch.dtype | None = None
        for name, values in (("mean_C11", spec.mean), ("std_C11", spec.std)):
            self.register_buffer(
                name, torch.tensor(values, dtype=torch.float32, device=self.device)[:, None, None], persistent=False
            )

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D) of uint8 pixels (B, C, H, W), not yet of unit norm."""
        # normalised in float32 whatever the model's dtype: 8 bits of a pixel and its mean do not fit into bfloat16
        values_BCHW = (pixels_BCHW.float() * self.scale - self.mean_C11) / self.std_C11  # type: ignore[operator]
        if self.products is None:
            return self.family.embed_images(self.vision, values_BCHW.to(next(self.vision.parameters()).dtype))
        # beside float32 tokens: autocast takes what enters a product to its dtype, and leaves norms and sums alone
        with torch.autocast(self.device.type, self.products):
            return self.family.embed_images(self.vision, values_BCHW)

    def regions(self) -> list[nn.Module]:
        """What is compiled, each by itself: transformers' layers may differ from one another in more than weights."""
        return [self]

    def cast(self, dtype: torch.dtype) -> None:
        """Let the products be computed in `dtype`; norms and the residual stream too, where that is exact enough."""
        if dtype == torch.float32 or not keeps_stream(dtype, self.device):
            self.vision.to(dtype)
            return
        self.products = dtype
        for module in self.vision.modules():
            if isinstance(module, PRODUCTS):
                module.to(dtype)


def keeps_stream(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether tokens between products of `dtype` stay float32: bfloat16's 8 bits lose too much over many layers.

    On a CPU it costs nothing in float16 either.
    """
    return dtype != torch.float16 or device.type == "cpu"


def load_tokenizer(folder: Path, class_name: str) -> Any:
    """The tokenizer in a folder, as transformers' class reads it. Raises ModelError."""
    import transformers

    try:
        with quiet_transformers():
            return getattr(transformers, class_name).from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers meets untrusted files here
        raise ModelError(f"the tokenizer of base {folder} cannot be loaded: {type(error).__name__}: {error}") from error


def load_tower(
    folder: Path,
    class_name: str,
    config_of: Callable[[Path], Any],
    what: str,
    weights: dict[str, torch.Tensor] | None = None,
) -> nn.Module:
    """A transformers model in float32, every weight of it found in the folder's safetensors files, and finite.

    `weights` stand for those files where they have other names there. Raises ModelError. No code that lies in the
    folder is run.
    """
    import transformers

    place = {"use_safetensors": True, "local_files_only": True} if weights is None else {"state_dict": weights}
    try:
        with quiet_transformers():
            given = {} if (config := config_of(folder)) is None else {"config": config}
            loaded: Any = getattr(transformers, class_name).from_pretrained(
                folder if weights is None else None, **given, **place, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:  # transformers meets untrusted files here
        raise ModelError(f"base {folder} cannot be loaded as {what}: {type(error).__name__}: {error}") from error
    model, info = loaded
    _check_whole(model, info["missing_keys"], folder, what)
    return model.eval().requires_grad_(False)


def _check_whole(model: nn.Module, missing: Iterable[str], folder: Path, what: str) -> None:
    """Raises ModelError where weights are missing, or not finite."""
    if lacking := sorted(missing):
        raise ModelError(f"base {folder} lacks {len(lacking)} weights of {what}, such as {lacking[0]}")
    # a sum is finite where all its terms are, and takes a tenth of the time of isfinite over all of them
    if broken := sorted(name for name, weight in model.named_parameters() if not weight.sum().isfinite()):
        raise ModelError(f"base {folder}: {len(broken)} weights are not finite, such as {broken[0]}")


def without(model: nn.Module, modules: Sequence[str]) -> nn.Module:
    """A model without the modules of the other tower, in place: an adapter is put onto what is left."""
    for name in modules:
        if hasattr(model, name):
            delattr(model, name)
    return model


def embedding_of(output: Any) -> torch.Tensor:
    """The embedding (B, D) in what a transformers model returned.

    `get_image_features` returns the projected tensor in transformers 4, and in 5 an object whose `pooler_output` is
    that tensor; models with projection say `image_embeds`, and towers alone pool. Raises ModelError where nothing is.
    """
    if isinstance(output, torch.Tensor):
        return output
    for name in ("image_embeds", "text_embeds", "pooler_output"):
        if (embedding_BD := getattr(output, name, None)) is not None:
            return embedding_BD
    raise ModelError(
        f"the model returns a {type(output).__name__} without a pooled embedding: "
        "its family says in embed_images how one is made (docs/extending.md)"
    )
