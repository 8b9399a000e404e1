"""Outputs over the same images: which finds best, and what an adapter changed."""
