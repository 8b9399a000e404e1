"""Pixels and texts to embeddings, by a base model with its adapter merged."""
