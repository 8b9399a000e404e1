"""Small open_clip models in plain torch, module for module as open_clip 3.3 and timm 1.0 name them, and saved.

model, base = save("clip", tmp_path / "base")       # open_clip_model.safetensors, open_clip_config.json, a tokenizer
model.encode_image(values_BCHW), model.encode_text(tokens_NT)
"""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from helpers.families import letters
from helpers.models import spread

SIZE, PATCH, WORDS, CONTEXT = 32, 8, 64, 16


class QuickGELU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """ResidualAttentionBlock."""

    def __init__(self, width: int, heads: int, hidden: int, act: nn.Module, eps: float = 1e-5) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        parts = {"c_fc": nn.Linear(width, hidden), "gelu": act, "c_proj": nn.Linear(hidden, width)}
        self.mlp = nn.Sequential(OrderedDict(parts))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, *block: Any, layers: int = 2) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(*block) for _ in range(layers))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Vision(nn.Module):
    """VisionTransformer with a class token."""

    def __init__(self, width: int, heads: int, hidden: int, act: nn.Module, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((SIZE // PATCH) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, heads, hidden, act)
        self.proj = nn.Parameter(torch.randn(width, out))

    def forward(self, values_BCHW: torch.Tensor) -> torch.Tensor:
        patches = self.conv1(values_BCHW).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(patches), 1, -1)
        tokens = self.ln_pre(torch.cat([first, patches], dim=1) + self.positional_embedding)
        return self.ln_post(self.transformer(tokens))[:, 0] @ self.proj


class Text(nn.Module):
    """TextTransformer; `siglip` sees all tokens and takes the last, through a projection with bias."""

    def __init__(self, width: int, heads: int, act: nn.Module, out: int, siglip: bool, eos: int | None = None) -> None:
        super().__init__()
        self.siglip, self.eos, eps = siglip, eos, 1e-6 if siglip else 1e-5
        self.token_embedding = nn.Embedding(WORDS, width)
        self.positional_embedding = nn.Parameter(torch.randn(CONTEXT, width))
        self.transformer = Transformer(width, heads, 4 * width, act, eps)
        self.ln_final = nn.LayerNorm(width, eps)
        self.text_projection: Any = nn.Linear(width, out) if siglip else nn.Parameter(torch.randn(width, out))

    def forward(self, tokens_NT: torch.Tensor) -> torch.Tensor:
        length = tokens_NT.shape[1]
        mask = None if self.siglip else torch.full((length, length), -torch.inf).triu(1)
        x = self.transformer(self.token_embedding(tokens_NT) + self.positional_embedding[:length], mask)
        x = self.ln_final(x)
        if self.siglip:
            return self.text_projection(x[:, -1])
        ends = tokens_NT if self.eos is None else (tokens_NT == self.eos).int()
        return x[torch.arange(len(x)), ends.argmax(dim=-1)] @ self.text_projection


class TimmBlock(nn.Module):
    """A block of timm's VisionTransformer."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in self.attn["qkv"](self.norm1(x)).chunk(3, -1)
        )
        context = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.attn["proj"](context)
        return x + self.mlp["fc2"](functional.gelu(self.mlp["fc1"](self.norm2(x))))


class AttentionPool(nn.Module):
    """timm's AttentionPoolLatent."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.latent = heads, nn.Parameter(torch.randn(1, 1, width))
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, 1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        key, value = self.kv(x).chunk(2, -1)
        latent = self.q(self.latent.expand(len(x), -1, -1))
        split = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in (latent, key, value))
        x = self.proj(functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))
        return (x + self.mlp["fc2"](functional.gelu(self.mlp["fc1"](self.norm(x)))))[:, 0]


class Trunk(nn.Module):
    """timm's vit_base_patch…_siglip."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, (SIZE // PATCH) ** 2, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, PATCH, PATCH)})
        self.blocks = nn.Sequential(*(TimmBlock(width, heads, hidden) for _ in range(2)))
        self.norm, self.attn_pool = nn.LayerNorm(width, 1e-6), AttentionPool(width, heads, hidden)

    def forward(self, values_BCHW: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embed["proj"](values_BCHW).flatten(2).transpose(1, 2)
        return self.attn_pool(self.norm(self.blocks(patches + self.pos_embed)))


class Timm(nn.Module):
    """TimmModel without a head."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, values_BCHW: torch.Tensor) -> torch.Tensor:
        return self.trunk(values_BCHW)


class Model(nn.Module):
    """open_clip's CLIP, or CustomTextCLIP, whose text tower has a name of its own."""

    def __init__(self, visual: nn.Module, text: nn.Module, custom: bool) -> None:
        super().__init__()
        self.visual, self._text = visual, [text]
        for name, module in {"text": text}.items() if custom else [*text.named_children()]:
            self.add_module(name, module)
        if not custom:
            for name, parameter in text.named_parameters(recurse=False):
                self.register_parameter(name, parameter)
        self.logit_scale = nn.Parameter(torch.tensor(2.6))
        if custom:
            self.logit_bias = nn.Parameter(torch.tensor(-10.0))

    def encode_image(self, values_BCHW: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D)."""
        return self.visual(values_BCHW)

    def encode_text(self, tokens_NT: torch.Tensor) -> torch.Tensor:
        """Embeddings (N, D)."""
        return self._text[0](tokens_NT)


def make(kind: str) -> tuple[Model, dict[str, Any]]:
    """A model of random weights and its open_clip_config.json: `clip`, `quick`, `custom`, `worldwide` or `siglip`."""
    text: dict[str, Any] = {"context_length": CONTEXT, "vocab_size": WORDS, "width": 32, "heads": 2, "layers": 2}
    if kind == "siglip":
        own = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
        vision: dict[str, Any] = {"image_size": SIZE, "timm_model_name": f"vit_base_patch{PATCH}_siglip_{SIZE}"}
        vision |= {"timm_model_pretrained": False, "timm_pool": "map", "timm_proj": "none"}
        text |= {**own, "hf_tokenizer_name": "some/tokenizer", "tokenizer_kwargs": {"clean": "canonicalize"}}
        model = Model(Timm(Trunk(48, 12, 96)), Text(32, 2, nn.GELU(), 48, siglip=True), custom=True)
        cfg = {"embed_dim": 48, "init_logit_bias": -10, "custom_text": True, "vision_cfg": vision, "text_cfg": text}
        pixels: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.5] * 3}
        return model, {"model_cfg": cfg, "preprocess_cfg": {**pixels, "resize_mode": "squash"}}
    act = QuickGELU() if kind == "quick" else nn.GELU()
    vision = {"image_size": SIZE, "layers": 2, "width": 48, "patch_size": PATCH, "head_width": 16, "mlp_ratio": 2.5}
    text |= {"hf_tokenizer_name": "some/tokenizer"}
    text |= {"pool_type": "eos", "eos_id": 1} if kind == "worldwide" else {}
    tower = Text(32, 2, act, 16, siglip=False, eos=1 if kind == "worldwide" else None)
    cfg = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text} | ({"quick_gelu": True} if kind == "quick" else {})
    return Model(Vision(48, 3, 120, act, 16), tower, custom=kind == "custom"), {"model_cfg": cfg, "preprocess_cfg": {}}


def save(kind: str, folder: Path) -> tuple[Model, Path]:
    """A model in open_clip's files, with a tokenizer of letters; returns it and the folder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, config = make(kind)
    spread(model.eval(), seed=0)
    folder.mkdir(parents=True)
    save_file(
        {name: one.contiguous() for name, one in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    letters().save_pretrained(folder)
    return model, folder


def edit_part(folder: Path, part: str, section: str = "model_cfg", **changes: Any) -> None:
    """Change some values of an open_clip_config.json; `...` takes a key away."""
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    values = config[section][part] if part else config[section]
    values |= changes
    for key in [key for key, value in values.items() if value is ...]:
        del values[key]
    path.write_text(json.dumps(config))
