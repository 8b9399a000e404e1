"""An output, opened to be searched.

collection = open_output("outputs")
hits = collection.search("a red apple", k=5)
hits[0].key, hits[0].image()
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lora_clip.errors import DataError, OutputError
from lora_clip.inspection.pictures import Pictures
from lora_clip.output.manifest import read_manifest
from lora_clip.output.provenance import require_fingerprint
from lora_clip.output.rows import Rows, row_ids, split_ids
from lora_clip.pixels.decode import ImageError
from lora_clip.search.exact import NO_ROW, nearest
from lora_clip.search.index import open_index, without
from lora_clip.search.query import QueryEncoder
from lora_clip.sources.names import image_name

Query = str | Path | bytes | Image.Image
HITS = 10


@dataclass(frozen=True)
class Hit:
    """A row that was found: its cosine to the query, and what is known of the image.

    `shard` is the path of the image's shard, `position` its place there; `row` is its number in the files of shard
    `shard_id`. `caption`, `url` and `metadata` (JSON) are None where the shard has none.
    """

    score: float
    key: str
    shard: str
    position: int
    caption: str | None
    url: str | None
    metadata: str | None
    image_path: str
    width: int
    height: int
    shard_id: int
    row: int
    pictures: Pictures = field(repr=False, compare=False)

    def image(self) -> Image.Image:
        """The picture, RGB, from its shard. Raises DataError or ImageError where it is not there any more."""
        return self.pictures.image(self.shard_id, self.position, self.key)

    def thumbnail(self, pixels: int) -> bytes | None:
        """The picture as a JPEG file of at most `pixels` a side, or None."""
        return self.pictures.thumbnail(self.shard_id, self.position, pixels, self.key)

    def to_json(self) -> dict[str, Any]:
        """The hit as plain JSON values."""
        return {name: value for name, value in vars(self).items() if name != "pictures"}


def open_output(root: str | Path, base: str | None = None, adapter: str | None = None) -> Collection:
    """Open the output of a job; `base` and `adapter` say where its model lies now, if it was moved.

    Raises OutputError where there is no finished output.
    """
    return Collection(Path(root).expanduser(), base, adapter)


class Collection:
    """The embeddings of an output, with their index if there is one, their model, and their pictures."""

    def __init__(self, root: Path, base: str | None = None, adapter: str | None = None) -> None:
        self.root = root
        self.pictures = Pictures.of(root)
        manifest = read_manifest(root)
        if manifest is None:
            require_fingerprint(root)
            raise OutputError(f"{root} has no manifest.json: the job has not come to its end; run it again first")
        self.manifest = manifest
        self.rows = Rows(root)
        self.index = open_index(root, self.rows)
        self._places = base, adapter

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def encoder(self) -> QueryEncoder:
        """The model that made the embeddings. Raises OutputError where another one is found in its place."""
        return self.load_encoder()

    def load_encoder(self) -> QueryEncoder:
        """The same, loaded anew and not kept: for who asks many outputs once, each with a model of its own."""
        return QueryEncoder.of(self.manifest, *self._places)

    def search(self, query: Query, k: int = HITS) -> list[Hit]:
        """The k rows nearest to a query, best first.

        A query is a text; the path of an image file; the image_path, URL or key of a row that looks like a file; an
        image file's bytes; or a PIL image.
        """
        if isinstance(query, str) and not query.strip():
            raise DataError('an empty query: type what is to be seen, such as "a red apple", or the path of an image')
        if isinstance(query, str | Path) and (id_ := self._row_called(str(query))) is not None:
            return self._like(id_, k)
        return self.nearest(self._embed(query)[None], k)[0]

    def search_text(self, text: str, k: int = HITS) -> list[Hit]:
        """The k rows nearest to a text, whatever it looks like."""
        return self.nearest(self.encoder.text([text]), k)[0]

    def like(self, shard_id: int, row: int, k: int = HITS) -> list[Hit]:
        """The k rows nearest to a row, which is left out itself. Raises DataError where there is no such row."""
        return self._like(self._id(shard_id, row), k)

    def hit(self, shard_id: int, row: int) -> Hit:
        """One row, as found by itself. Raises DataError where there is no such row."""
        return self.hits(np.ones(1), np.array([self._id(shard_id, row)]))[0]

    def _id(self, shard_id: int, row: int) -> int:
        if shard_id not in self.rows.blocks or not 0 <= row < self.rows.blocks[shard_id].rows:
            raise DataError(f"there is no row {row} of shard {shard_id}")
        return int(row_ids(shard_id, np.array(row)))

    def _like(self, id_: int, k: int) -> list[Hit]:
        own_1 = np.array([id_])
        scores_1K, ids_1K = without(*self.nearest_ids(self.rows.embeddings(own_1), k + 1), own_1, k)
        return self.hits(scores_1K[0], ids_1K[0])

    def nearest(self, queries_QD: np.ndarray, k: int = HITS) -> list[list[Hit]]:
        """The k rows nearest to each embedding of unit norm."""
        return [self.hits(*found) for found in zip(*self.nearest_ids(queries_QD, k), strict=True)]

    def nearest_ids(self, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosines (Q, k) and row ids (Q, k), by the index if it is up to date, else by looking at every row."""
        if self.index is not None:
            return self.index.search(queries_QD, k)
        return nearest(self.rows, queries_QD, k)

    def _embed(self, query: Query) -> np.ndarray:
        if isinstance(query, bytes | Image.Image):
            return self.encoder.image(query)
        path = Path(query).expanduser()
        if _is_file(path):
            try:
                return self.encoder.image(path.read_bytes())
            except ImageError as error:
                raise DataError(f"{query} is not an image that can be read: {error}") from error
        if isinstance(query, Path) or _like_file(str(query)):
            raise DataError(
                f"{query}: there is no such file, and no row of {self.root} has this image_path, URL or key"
            )
        return self.encoder.text([query])[0]

    def _row_called(self, name: str) -> int | None:
        """The row that a query names; a word that is also a key is a word."""
        return self.rows.find(name) if _like_file(name) and not _is_file(Path(name).expanduser()) else None

    def hits(self, scores_K: np.ndarray, ids_K: np.ndarray) -> list[Hit]:
        """What is known of rows, by their ids; where there is nobody there is no hit."""
        known_K = ids_K[ids_K != NO_ROW]
        shards_K, numbers_K = split_ids(known_K)
        return [
            self._hit(float(score), int(shard), int(number), row)
            for score, shard, number, row in zip(
                scores_K, shards_K, numbers_K, self.rows.metadata(known_K), strict=False
            )
        ]

    def _hit(self, score: float, shard: int, number: int, row: dict[str, Any]) -> Hit:
        names = ("key", "position", "caption", "url", "metadata", "image_path", "width", "height")
        path = self.pictures.shards[shard].path if shard in self.pictures.shards else ""
        known = {name: row[name] for name in names}
        return Hit(score=score, shard=path, shard_id=shard, row=number, pictures=self.pictures, **known)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a text may be longer than a path can be
        return False


def _like_file(text: str) -> bool:
    """Whether a query names a file or an address rather than what is to be seen."""
    return "://" in text or (image_name(text) is not None and (" " not in text or "/" in text))
