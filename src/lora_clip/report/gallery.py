"""A few pictures of the output, each with its nearest neighbours: whether the embeddings make sense, at a glance."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_clip.inspection.pictures import Pictures
from lora_clip.output.rows import Rows

ROWS_LOOKED_AT = 4096
QUERIES, NEIGHBOURS = 6, 6
THUMBNAIL_PIXELS = 112


@dataclass(frozen=True)
class Hit:
    """A picture of the output: its row of metadata, and its cosine to the query."""

    row: Mapping[str, Any]
    cosine: float


def pick(rows: Rows) -> list[list[Hit]]:
    """Some pictures of a sample of all rows; each line is a query followed by its nearest neighbours in the sample."""
    ids_N = rows.sample(ROWS_LOOKED_AT)
    embeddings_ND = rows.embeddings(ids_N)
    queries = np.linspace(0, len(ids_N) - 1, min(QUERIES, len(ids_N)), dtype=int)
    lines = [_line(embeddings_ND, int(query)) for query in queries]
    return [
        [Hit(row, cosine) for row, (_, cosine) in zip(rows.metadata(ids_N[[at for at, _ in line]]), line, strict=True)]
        for line in lines
    ]


def _line(embeddings_ND: np.ndarray, query: int) -> list[tuple[int, float]]:
    """The query and its nearest neighbours, each with its cosine."""
    cosines_N = embeddings_ND @ embeddings_ND[query]
    nearest = [index for index in np.argsort(-cosines_N, kind="stable")[: NEIGHBOURS + 1] if index != query]
    return [(index, float(cosines_N[index])) for index in (query, *nearest[:NEIGHBOURS])]


def gallery(lines: Sequence[Sequence[Hit]], pictures: Pictures) -> str:
    """The pictures as HTML, with thumbnails read from the input; one that cannot be read is left blank."""
    rows = "".join(f"<tr>{''.join(_cell(hit, pictures) for hit in line)}" for line in lines)
    heading = (
        "<h2>Pictures and their nearest neighbours</h2><p>Each line begins with the query; figures are cosines.</p>"
    )
    return f"{heading}<div class=wide><table class=gallery>{rows}</table></div>"


def _cell(hit: Hit, pictures: Pictures) -> str:
    caption = html.escape(hit.row["caption"] or hit.row["key"])
    data = pictures.thumbnail(hit.row["shard"], hit.row["position"], THUMBNAIL_PIXELS)
    shown = f"src='data:image/jpeg;base64,{base64.b64encode(data).decode()}'" if data else ""
    image = f"<img alt='{caption}' title='{caption}' {shown}>" if data else "<i>no picture</i>"
    return f"<td>{image}<br>{hit.cosine:.2f}"
