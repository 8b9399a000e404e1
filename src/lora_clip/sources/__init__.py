"""Where images come from: shards of undecoded bytes."""
