"""What comes with the package: shards of pictures, a small CLIP, and an adapter for it."""

from pathlib import Path

DEMO = Path(__file__).parent
