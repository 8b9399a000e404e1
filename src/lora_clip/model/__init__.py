"""Pixels to embeddings: base CLIP + LoRA adapter, loaded, checked and merged."""
