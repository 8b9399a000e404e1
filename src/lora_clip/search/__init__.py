"""What the embeddings are for: `open_output("outputs").search("a red apple")`."""

from lora_clip.search.collection import Collection, Hit, open_output

__all__ = ["Collection", "Hit", "open_output"]
