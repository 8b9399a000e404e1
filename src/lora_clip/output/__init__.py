"""Embeddings out: the contract on disk, the writer that keeps it, and the proof that it was kept."""
