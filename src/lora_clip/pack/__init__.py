"""A folder tree of images into WebDataset shards."""
