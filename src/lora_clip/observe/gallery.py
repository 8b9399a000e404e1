"""A few pictures of the output, each with its nearest neighbours: whether the embeddings make sense, at a glance."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from lora_clip.output.store import Store
from lora_clip.pictures import Pictures

ROWS_LOOKED_AT = 4096
QUERIES, NEIGHBOURS = 6, 6
THUMBNAIL_PIXELS = 112


@dataclass(frozen=True)
class Hit:
    """A picture of the output: its row of metadata, and its cosine to the query."""

    row: Mapping[str, Any]
    cosine: float


def pick(store: Store, shards: Sequence[int]) -> list[list[Hit]]:
    """Some pictures spread over the first finished shards; each line is a query followed by its nearest neighbours."""
    embeddings: list[np.ndarray] = []
    rows: list[dict[str, Any]] = []
    for shard in shards:
        if len(rows) >= ROWS_LOOKED_AT:
            break
        if store.path("img_emb", shard).exists():
            embeddings.append(np.load(store.path("img_emb", shard), allow_pickle=False)[:ROWS_LOOKED_AT])
            rows += pq.read_table(store.path("metadata", shard)).slice(0, ROWS_LOOKED_AT).to_pylist()
    if not rows:
        return []
    embeddings_ND = np.concatenate(embeddings).astype(np.float32)
    return [
        _line(embeddings_ND, rows, query) for query in np.linspace(0, len(rows) - 1, min(QUERIES, len(rows)), dtype=int)
    ]


def _line(embeddings_ND: np.ndarray, rows: Sequence[Mapping[str, Any]], query: int) -> list[Hit]:
    cosines_N = embeddings_ND @ embeddings_ND[query]
    nearest = [index for index in np.argsort(-cosines_N, kind="stable")[: NEIGHBOURS + 1] if index != query]
    return [Hit(rows[index], float(cosines_N[index])) for index in (query, *nearest[:NEIGHBOURS])]


def gallery(lines: Sequence[Sequence[Hit]], pictures: Pictures) -> str:
    """The pictures as HTML, with thumbnails read from the input; one that cannot be read is left blank."""
    rows = "".join(f"<tr>{''.join(_cell(hit, pictures) for hit in line)}" for line in lines)
    heading = "<h2>Pictures and their nearest neighbours</h2><p>Each line begins with the query; figures are cosines."
    return f"{heading}<table class=gallery>{rows}</table>" if lines else ""


def _cell(hit: Hit, pictures: Pictures) -> str:
    caption = html.escape(hit.row["caption"] or hit.row["key"])
    data = pictures.thumbnail(hit.row["shard"], hit.row["position"], THUMBNAIL_PIXELS)
    shown = f"src='data:image/jpeg;base64,{base64.b64encode(data).decode()}'" if data else ""
    image = f"<img alt='{caption}' title='{caption}' {shown}>" if data else "<i>no picture</i>"
    return f"<td>{image}<br>{hit.cosine:.2f}"
