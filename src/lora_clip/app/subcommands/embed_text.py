"""`lora-clip embed-text FILE --like OUTPUT`, or with --base and --adapter in place of --like.

FILE has a text a line. Row i of the .npy, float32 of unit norm, is line i; the .parquet beside it has the texts, and in
its schema's metadata which model embedded them. By the model of an output: its rows and these are then compared by a
product of the two.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_clip.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("file", metavar="FILE", type=Path, help="a text file (UTF-8), a text a line")
    parser.add_argument("--like", metavar="OUTPUT", type=Path, help="by the model of this job's output_dir")
    parser.add_argument("--base", help="the base model; with --like: where it lies now")
    parser.add_argument("--adapter", help="the adapter on it; with --like: where it lies now")
    parser.add_argument("--output", type=Path, help="the .npy file (default: FILE with .npy for its extension)")


def run(given: argparse.Namespace) -> int:
    """Embed, write, and say what was written. Raises a LoraClipError."""
    texts, path = read_lines(given.file), given.output or given.file.with_suffix(".npy")
    if path.suffix != ".npy":
        raise ConfigError(f"--output {path}: give a name that ends in .npy")
    embeddings_ND, model = embed(texts, given.like, given.base, given.adapter)
    write(path, texts, embeddings_ND, model)
    print(f"{len(texts):,} texts, {embeddings_ND.shape[1]} wide, by {model['base']}{_and(model['adapter'])}")
    print(f"look at:  {path} and {path.with_suffix('.parquet').name}")
    return 0


def _and(adapter: str | None) -> str:
    return f" + {adapter}" if adapter else ""


def read_lines(path: Path) -> list[str]:
    """The lines of a text file. Raises DataError where it cannot be read, has none, or has an empty one."""
    try:
        lines = path.read_text("utf-8-sig").split("\n")  # no other character ends a line, as in the tools of a shell
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} cannot be read as text (UTF-8): {error}") from error
    lines = [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    if not lines:
        raise DataError(f"{path} is empty: a text a line is expected")
    if empty := [number for number, line in enumerate(lines, 1) if not line.strip()]:
        raise DataError(
            f"{path}: line {empty[0]} is empty{f', and {len(empty) - 1} more' if empty[1:] else ''}. "
            f"Every line is a text; grep . {path} leaves empty ones out"
        )
    return lines


def embed(
    texts: Sequence[str], like: Path | None, base: str | None, adapter: str | None
) -> tuple[np.ndarray, Mapping[str, Any]]:
    """The embeddings (N, D), and what made them: names and SHA-256 of base and adapter."""
    from lora_clip.api import InCodeEmbedder, load_embedder
    from lora_clip.models.digests import digests
    from lora_clip.models.embedder import MergedEmbedder
    from lora_clip.search import open_output

    if like is not None:
        queries = open_output(like, base, adapter).encoder
        assert isinstance(queries.embedder, MergedEmbedder)
        embedder = InCodeEmbedder(queries.embedder, queries.decoding)
    elif base or adapter:
        embedder = load_embedder(base, adapter, device="cpu", dtype="float32")
    else:
        raise ConfigError("by which model? Give --like OUTPUT, or --base, --adapter, or both")
    found = embedder.embedder.checkpoint
    model = {"base": found.base, "adapter": found.adapter, "sha256": digests(found)}
    return embedder.embed_texts(texts, show_progress_bar=len(texts) > 10_000), model


def write(path: Path, texts: Sequence[str], embeddings_ND: np.ndarray, model: Mapping[str, Any]) -> None:
    """Write both files: who sees the .npy sees the .parquet. Raises StorageError."""
    import pyarrow as pa

    from lora_clip.io.atomic import replace_together
    from lora_clip.output.tables import write_npy, write_table

    schema = pa.schema([("text", pa.string())], metadata={"lora_clip": json.dumps(model)})
    table = pa.table({"text": list(texts)}).cast(schema)
    replace_together(
        {
            path.with_suffix(".parquet"): lambda file: write_table([table], schema, file),
            path: lambda file: write_npy([embeddings_ND], embeddings_ND.shape, embeddings_ND.dtype, file),
        },
        path.parent,
    )
