"""What an open_clip_config.json says, in the words of transformers' configs; what those have no word for is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_clip.errors import ModelError
from lora_clip.models.base import OPEN_CLIP_CONFIG
from lora_clip.models.open_clip_weights import shapes_of

WHAT_TO_DO = (
    "take the model in transformers' form where its publisher has one (a repository with a config.json), or embed with "
    "open_clip itself"
)
ANY: Any = ...
"""A value that is read, or that makes no difference to embeddings."""
BLOCKS: dict[str, Any] = {
    "ls_init_value": None,
    "block_type": (None, "default"),
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
    **dict.fromkeys(("width", "layers", "mlp_ratio", "act_kwargs", "norm_kwargs", "output_tokens"), ANY),
}
MODEL: dict[str, Any] = {
    **dict.fromkeys(("embed_dim", "quick_gelu", "vision_cfg", "text_cfg", "custom_text", "output_dict"), ANY),
    **dict.fromkeys(("init_logit_scale", "init_logit_bias", "nonscalar_logit_scale", "cast_dtype"), ANY),
}
VISION: dict[str, Any] = {
    **BLOCKS,
    **dict.fromkeys(("image_size", "patch_size", "head_width", "patch_dropout", "pos_embed_type"), ANY),
    **dict.fromkeys(("attn_pooler_queries", "attn_pooler_heads", "final_ln_after_pool"), ANY),
    "attentional_pool": False,
    "no_ln_pre": False,
    "pool_type": "tok",
}
TIMM_ONLY = dict.fromkeys(("timm_model_pretrained", "timm_drop", "timm_drop_path", "timm_proj_bias"), ANY)
TRUNK: dict[str, Any] = {
    **dict.fromkeys((*VISION, *TIMM_ONLY, "timm_model_name"), ANY),
    "timm_pool": "map",
    "timm_proj": ("none", None),
}
TEXT: dict[str, Any] = {
    **BLOCKS,
    **dict.fromkeys(("context_length", "vocab_size", "heads", "hf_tokenizer_name", "tokenizer_kwargs"), ANY),
    **dict.fromkeys(("pad_id", "eos_id", "final_ln_after_pool"), ANY),
    "tokenizer_mode": (None, ""),
    "embed_cls": False,
    "hf_model_name": None,
    **dict.fromkeys(("hf_model_pretrained", "hf_proj_type", "hf_pooler_type"), ANY),
    "proj_type": "linear",
    "no_causal_mask": False,
    "proj_bias": False,
    "pool_type": ("argmax", "eos"),
}
SIGLIP_TEXT: dict[str, Any] = {**TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
PIXELS: dict[str, Any] = {
    **dict.fromkeys(("size", "mean", "std", "interpolation", "resize_mode"), ANY),
    "mode": "RGB",
    "fill_color": 0,
}
SIGLIP = re.compile(r"vit_(?P<size>base|large|so400m|giantopt)_patch(?P<patch>\d+)_siglip_(?P<image>\d+)(\..+)?")
HEADS = {"base": 12, "large": 16, "so400m": 16, "giantopt": 16}
"""Attention heads of timm's SigLIPs; all else is seen in the weights' shapes."""
TANH = re.compile(r"vit_(base_patch32|large_patch16_siglip_512|so400m_patch16|giantopt)")
"""Those of timm's SigLIPs whose GELU is the approximation by tanh; the others' is exact."""
CLEANING = ("whitespace", "lower", "canonicalize")


@dataclass(frozen=True)
class Described:
    """A checkpoint as transformers would configure it: a config's values for each tower, the width of embeddings.

    `tokenizer` is the hub name of a tokenizer that is not CLIP's own, `cleaning` what open_clip does to a text before.
    """

    vision: dict[str, Any]
    text: dict[str, Any]
    width: int
    tokenizer: str | None
    cleaning: str


def kind_of(folder: Path) -> str:
    """The family of an open_clip checkpoint, as the registry names it. Raises ModelError."""
    model = section(folder, "model_cfg")
    if _part(model, "vision_cfg", folder).get("timm_model_name"):
        return "open_clip_siglip"
    return "open_clip_metaclip_2" if _part(model, "text_cfg", folder).get("pool_type") == "eos" else "open_clip"


def describe(folder: Path) -> Described:
    """What a checkpoint's config says. Raises ModelError where it asks for what transformers' models do not have."""
    model = section(folder, "model_cfg")
    if model.get("multimodal_cfg") is not None:
        raise refusal(folder, "a CoCa, which writes texts as well (model_cfg.multimodal_cfg)")
    _check(model, MODEL, "model_cfg", folder)
    try:
        return _described(folder, model)
    except ModelError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{folder / OPEN_CLIP_CONFIG} is not clear ({type(error).__name__}: {error})") from error


def pixels_of(folder: Path) -> dict[str, Any]:
    """The part of the config about pixels. Raises ModelError for steps that are not known here."""
    given = section(folder, "preprocess_cfg", {})
    _check(given, PIXELS, "preprocess_cfg", folder)
    return given


def section(folder: Path, name: str, default: Any = None) -> dict[str, Any]:
    """One of the two parts of an open_clip_config.json. Raises ModelError."""
    path = folder / OPEN_CLIP_CONFIG
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    return _part(config if isinstance(config, dict) else {}, name, folder, default)


def refusal(folder: Path, what: str) -> ModelError:
    """The error for an open_clip checkpoint that transformers' models cannot stand for."""
    return ModelError(
        f"base {folder} is an open_clip model that cannot be read here: {what}. What you can do: {WHAT_TO_DO}"
    )


def _part(config: Mapping[str, Any], name: str, folder: Path, default: Any = None) -> dict[str, Any]:
    found = config.get(name, default)
    if not isinstance(found, dict):
        raise ModelError(f"{folder / OPEN_CLIP_CONFIG} has no {name} (a JSON object)")
    return found


def _described(folder: Path, model: Mapping[str, Any]) -> Described:
    vision, text = (_part(model, name, folder) for name in ("vision_cfg", "text_cfg"))
    quick, width = bool(model.get("quick_gelu")), int(model["embed_dim"])
    siglip = bool(vision.get("timm_model_name"))
    if hf_name := text.get("hf_model_name"):
        raise refusal(folder, f"its texts are embedded by {hf_name} (text_cfg.hf_model_name)")
    described = _siglip(vision, folder) if siglip else _vision(vision, quick, folder)
    _check(text, SIGLIP_TEXT if siglip else TEXT, "text_cfg", folder)
    words = _text(text, quick, folder, {"projection_size": width, "eos_token_id": None} if siglip else _pooling(text))
    return Described(described, words, width, text.get("hf_tokenizer_name"), _cleaning(text, folder))


def _vision(vision: Mapping[str, Any], quick: bool, folder: Path) -> dict[str, Any]:
    """A ViT of open_clip's own, which is CLIP's."""
    if isinstance(vision.get("layers"), list):
        raise refusal(folder, "its images are embedded by a ResNet (model_cfg.vision_cfg.layers is a list)")
    # what timm's models are asked for says nothing where there is none
    _check({key: one for key, one in vision.items() if not key.startswith("timm_")}, VISION, "vision_cfg", folder)
    width = int(vision.get("width", 768))
    return {
        **_blocks(vision, width, int(vision.get("layers", 12)), quick, folder),
        "num_attention_heads": width // int(vision.get("head_width", 64)),
        "image_size": _square(vision.get("image_size", 224), "image_size", folder),
        "patch_size": _square(vision.get("patch_size", 16), "patch_size", folder),
    }


def _siglip(vision: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A ViT of timm's with attention pooling, which is SigLIP's."""
    name = str(vision["timm_model_name"])
    if (found := SIGLIP.fullmatch(name)) is None:
        raise refusal(
            folder, f"its images are embedded by timm's {name} (vision_cfg.timm_model_name), not by a ViT or a SigLIP"
        )
    _check(vision, TRUNK, "vision_cfg", folder)
    shapes = shapes_of(folder, "visual.trunk.")
    for needed in ("pos_embed", "blocks.0.mlp.fc1.weight"):
        if needed not in shapes:
            raise ModelError(f"base {folder} lacks visual.trunk.{needed} of a SigLIP")
    return {
        "hidden_size": shapes["pos_embed"][-1],
        "intermediate_size": shapes["blocks.0.mlp.fc1.weight"][0],
        "num_hidden_layers": len({key.split(".")[1] for key in shapes if key.startswith("blocks.")}),
        "num_attention_heads": HEADS[found["size"]],
        "image_size": _square(vision.get("image_size", 224), "image_size", folder),
        "patch_size": int(found["patch"]),
        "hidden_act": "gelu_pytorch_tanh" if TANH.match(name) else "gelu",
        "layer_norm_eps": 1e-6,
    }


def _text(text: Mapping[str, Any], quick: bool, folder: Path, more: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **_blocks(text, int(text.get("width", 512)), int(text.get("layers", 12)), quick, folder),
        "num_attention_heads": int(text.get("heads", 8)),
        "vocab_size": int(text.get("vocab_size", 49408)),
        "max_position_embeddings": int(text.get("context_length", 77)),
        "bos_token_id": None,
        "pad_token_id": None,
        **more,
    }


def _pooling(text: Mapping[str, Any]) -> dict[str, Any]:
    """Where a text's embedding is taken: at its highest token, which CLIP's config says by 2, or at a given one."""
    return {"eos_token_id": int(text.get("eos_id", 2)) if text.get("pool_type") == "eos" else 2}


def _blocks(config: Mapping[str, Any], width: int, layers: int, quick: bool, folder: Path) -> dict[str, Any]:
    """What a transformer's blocks are like."""
    acting, norming = config.get("act_kwargs") or {}, config.get("norm_kwargs") or {}
    if norming.keys() - {"eps"} or (
        acting and (quick or acting not in ({"approximate": "tanh"}, {"approximate": "none"}))
    ):
        raise refusal(folder, f"act_kwargs={acting} and norm_kwargs={norming} are not known here")
    tanh = acting.get("approximate") == "tanh"
    return {
        "hidden_size": width,
        "intermediate_size": int(width * float(config.get("mlp_ratio", 4.0))),
        "num_hidden_layers": layers,
        "hidden_act": "quick_gelu" if quick else "gelu_pytorch_tanh" if tanh else "gelu",
        "layer_norm_eps": float(norming.get("eps", 1e-5)),
    }


def _cleaning(text: Mapping[str, Any], folder: Path) -> str:
    """What is done to a text before it is tokenized; CLIP's own tokenizer lower-cases."""
    options = text.get("tokenizer_kwargs") or {}
    how = options.get("clean", "whitespace" if text.get("hf_tokenizer_name") else "lower")
    if options.keys() - {"clean"} or how not in CLEANING:
        raise refusal(folder, f"text_cfg.tokenizer_kwargs={options} is not known here")
    return str(how)


def _square(size: Any, name: str, folder: Path) -> int:
    sides = set(size) if isinstance(size, list) else {size}
    if len(sides) != 1:
        raise refusal(folder, f"vision_cfg.{name}={size} is no square")
    return int(sides.pop())


def _check(given: Mapping[str, Any], known: Mapping[str, Any], name: str, folder: Path) -> None:
    """Raises ModelError where a key is not known, or has a value that transformers' models do not have."""
    for key, value in given.items():
        if key not in known and value is None:
            continue
        if key not in known:
            raise refusal(folder, f"{name}.{key}={value} is not known here")
        wanted = known[key] if isinstance(known[key], tuple) else (known[key],)
        if wanted != (ANY,) and value not in wanted:
            raise refusal(folder, f"{name}.{key}={value}, which transformers' model does not have")
    for key in ("no_causal_mask", "proj_bias", "pool_type"):
        if known is SIGLIP_TEXT and key not in given:
            raise refusal(folder, f"{name} has no {key}, so its texts are not embedded as SigLIP's are")
