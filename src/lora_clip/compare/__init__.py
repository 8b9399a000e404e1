"""Two outputs over the same images: what an adapter changed."""
