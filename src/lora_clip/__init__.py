"""Embed a whole image collection with a LoRA-adapted CLIP model: every image exactly once."""

__version__ = "0.1.0"
