"""Retrieval figures of an output whose images have captions or labels: how well texts find images and images texts."""
