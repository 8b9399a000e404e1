"""Embeddings in code: the job's network and the job's pixels, without a job.

embedder = load_embedder("openai/clip-vit-base-patch32", adapter="/models/fashion-lora")
embedder.embed_images(["a.jpg", "b.png"]), embedder.embed_texts(["a red dress"])
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from lora_clip.errors import ConfigError, DataError, ModelError
from lora_clip.models.checkpoint import find_checkpoint
from lora_clip.models.compute import Compute, auto_batch_size, resolve_dtype
from lora_clip.models.embedder import MergedEmbedder
from lora_clip.models.encoder import CHUNK
from lora_clip.pixels.decode import DECODINGS, EXACT, EXIF, ImageError, fit, prepare

ImageLike = str | os.PathLike[str] | bytes | Image.Image
"""An image file's path or its bytes, or a PIL image."""
AUTO = "auto"
ON_ERROR = ("raise", "nan")
IGNORE, _ = ORIENTATIONS = ("ignore", EXIF)
TEXTS_AT_ONCE = 256
BATCHES_AHEAD = 2
"""How many batches are decoded while the model has another."""

T = TypeVar("T")


def load_embedder(
    base: str | os.PathLike[str] | None = None,
    adapter: str | os.PathLike[str] | Mapping[str, float] | None = None,
    *,
    device: str | torch.device = AUTO,
    dtype: str | torch.dtype = AUTO,
    batch_size: int | str = AUTO,
    compile: bool = False,  # noqa: A002 : the name that the job has for it
    decode: str = EXACT,
    orientation: str = IGNORE,
) -> InCodeEmbedder:
    """A model with its adapter merged and checked, as the job loads it, to be used from code.

    `base` and `adapter` are folders or names on the Hugging Face hub; the adapter names its base where none is given;
    a mapping of adapters to weights is their sum.
    `device` auto: a CUDA GPU if there is one, else the CPU. `dtype` (auto, float32, bfloat16, float16, int8, fp8),
    `batch_size` (images at a time, or auto), `compile`, `decode` (exact, fast) and `orientation` (ignore, exif) mean
    what they mean in the job's configuration.
    Raises ModelError, AdapterError or ConfigError: never is the base model taken for the adapted one.
    """
    where = _resolve_device(device)
    if decode not in DECODINGS:
        raise ConfigError(f"decode={decode}: {', '.join(DECODINGS)} are known")
    if orientation not in ORIENTATIONS:
        raise ConfigError(f"orientation={orientation}: {', '.join(ORIENTATIONS)} are known")
    size = auto_batch_size(where.type) if batch_size == AUTO else int(batch_size)
    if size < 1:
        raise ConfigError(f"batch_size={batch_size}: give a number of images, 1 or more")
    kind = resolve_dtype(str(dtype).removeprefix("torch."), where.type)
    compute = Compute(kind, where, size, compile)
    found = find_checkpoint(_name(base), adapter if isinstance(adapter, Mapping) else _name(adapter))
    return InCodeEmbedder(MergedEmbedder(found, compute).load(), decode, orientation)


def _name(given: str | os.PathLike[str] | None) -> str | None:
    return None if given is None else os.fspath(given)


def _resolve_device(device: str | torch.device) -> torch.device:
    """The device that is named. Raises ConfigError where it is not there."""
    if device == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a PyTorch without CUDA asserts
        raise ConfigError(f"device={device} cannot be used here: {str(error).splitlines()[0]}") from error
    return torch.device(device)


class InCodeEmbedder:
    """Images and texts to unit vectors (D,) float32, in the order in which they are given.

    Images go through the network in batches of one shape, and are decoded by threads meanwhile. So an image's embedding
    does not depend on how many are given, and is the job's own: the same bytes at its batch size and thread count.
    """

    def __init__(self, embedder: MergedEmbedder, decode: str = EXACT, orientation: str = IGNORE) -> None:
        self.embedder, self.decode = embedder, decode
        self.spec = replace(embedder.spec, orientation=orientation)

    def __repr__(self) -> str:
        found, compute = self.embedder.checkpoint, self.embedder.compute
        adapter = f" + {found.adapter}" if found.adapter else ""
        return f"<{found.base}{adapter}: {self.width} wide, {compute.dtype} on {compute.device}>"

    @property
    def width(self) -> int:
        """The width D of an embedding."""
        return self.embedder.width

    @property
    def device(self) -> torch.device:
        """Where images are embedded, and where tensors are returned."""
        return self.embedder.compute.device

    @property
    def batch_size(self) -> int:
        """How many images the network takes at a time."""
        return self.embedder.compute.batch_size

    @overload
    def embed_images(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        convert_to_tensor: Literal[False] = ...,
        show_progress_bar: bool = ...,
        on_error: str = ...,
    ) -> np.ndarray: ...
    @overload
    def embed_images(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        convert_to_tensor: Literal[True],
        show_progress_bar: bool = ...,
        on_error: str = ...,
    ) -> torch.Tensor: ...
    def embed_images(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        convert_to_tensor: bool = False,
        show_progress_bar: bool = False,
        on_error: str = "raise",
    ) -> np.ndarray | torch.Tensor:
        """Embeddings (N, D) float32 of unit norm, numpy or a tensor on the device; (D,) of a single image.

        An image is a path, a file's bytes, or a PIL image. One that cannot be read raises DataError, which names it;
        with on_error="nan" its row is NaN instead.
        """
        if on_error not in ON_ERROR:
            raise ConfigError(f"on_error={on_error}: {', '.join(ON_ERROR)} are known")
        single = isinstance(images, str | os.PathLike | bytes | Image.Image)
        many: Any = [images] if single else images
        with closing(self._batches(many, on_error)) as batches:
            found = list(_counted(batches, many, "images", show_progress_bar))
        return self._returned(found, single, convert_to_tensor)

    @overload
    def embed_texts(
        self, texts: str | Iterable[str], *, convert_to_tensor: Literal[False] = ..., show_progress_bar: bool = ...
    ) -> np.ndarray: ...
    @overload
    def embed_texts(
        self, texts: str | Iterable[str], *, convert_to_tensor: Literal[True], show_progress_bar: bool = ...
    ) -> torch.Tensor: ...
    def embed_texts(
        self, texts: str | Iterable[str], *, convert_to_tensor: bool = False, show_progress_bar: bool = False
    ) -> np.ndarray | torch.Tensor:
        """Embeddings (N, D) float32 of unit norm, numpy or a tensor on the device; (D,) of a single text.

        Computed in float32 on the CPU, as for searches; a text is cut where the model's context ends.
        Raises ModelError where the model has no text tower.
        """
        single = isinstance(texts, str)
        many: Any = [texts] if single else texts
        batches = (self._text_batch(batch) for batch in _batched(many, TEXTS_AT_ONCE))
        found = list(_counted(batches, many, "texts", show_progress_bar))
        return self._returned(found, single, convert_to_tensor)

    def _text_batch(self, texts: Sequence[str]) -> torch.Tensor:
        embeddings_ND = self.embedder.embed_texts(texts)
        if embeddings_ND is None:
            raise ModelError(f"base {self.embedder.checkpoint.base} has no text tower: only images can be embedded")
        return embeddings_ND

    def _returned(
        self, found: Sequence[torch.Tensor], single: bool, convert_to_tensor: bool
    ) -> np.ndarray | torch.Tensor:
        embeddings_ND = torch.cat(list(found)) if found else torch.empty(0, self.width)
        embeddings = embeddings_ND[0] if single else embeddings_ND
        return embeddings.to(self.device) if convert_to_tensor else embeddings.numpy()

    def _batches(self, images: Iterable[ImageLike], on_error: str) -> Generator[torch.Tensor]:
        """The embeddings of each batch, (B, D) or fewer rows at the end, on the CPU."""
        with ThreadPoolExecutor(thread_name_prefix="decode") as pool:
            try:
                batches = _batched(enumerate(images), self.batch_size)
                for pixels_BCHW, errors in _ahead((self._decoding(batch, pool) for batch in batches), BATCHES_AHEAD):
                    yield self._embed(pixels_BCHW, _errors_of(errors, on_error))
            finally:
                pool.shutdown(cancel_futures=True)

    def _decoding(
        self, batch: Sequence[tuple[int, ImageLike]], pool: ThreadPoolExecutor
    ) -> tuple[torch.Tensor, list[Future[DataError | None]]]:
        """A batch's pixels, while threads make them; what follows the images is black."""
        shape = (_padded(len(batch), self.batch_size, self.device), 3, *self.spec.crop)
        pixels_BCHW = torch.zeros(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        futures = [
            pool.submit(self._decode, number, image, pixels_BCHW[at]) for at, (number, image) in enumerate(batch)
        ]
        return pixels_BCHW, futures

    def _decode(self, number: int, image: ImageLike, out_CHW: torch.Tensor) -> DataError | None:
        """One image into its place in a batch, or why it cannot be read."""
        try:
            if isinstance(image, Image.Image):
                fit(torch.from_numpy(np.array(image.convert("RGB"))), self.spec, out_CHW)
            else:
                prepare(_bytes_of(image), self.spec, out_CHW, self.decode)
        except (ImageError, OSError, MemoryError) as error:
            name = f"{type(image).__name__}" if isinstance(image, Image.Image | bytes) else os.fspath(image)
            return DataError(f"image {number} ({name}) cannot be read: {str(error) or type(error).__name__}")
        return None

    @torch.inference_mode()
    def _embed(self, pixels_BCHW: torch.Tensor, broken_N: Sequence[bool]) -> torch.Tensor:
        moved_BCHW = pixels_BCHW.to(self.device, non_blocking=self.device.type == "cuda")
        embeddings_ND = self.embedder.embed_images(moved_BCHW)[: len(broken_N)].cpu()
        embeddings_ND[torch.tensor(broken_N)] = torch.nan
        return embeddings_ND


def _bytes_of(image: str | os.PathLike[str] | bytes) -> bytes:
    return image if isinstance(image, bytes) else Path(image).expanduser().read_bytes()


def _errors_of(futures: Iterable[Future[DataError | None]], on_error: str) -> list[bool]:
    """Which images of a batch cannot be read, once all are decoded. Raises the first one's DataError if so asked."""
    errors = [future.result() for future in futures]
    if on_error == "raise" and (first := next((error for error in errors if error), None)):
        raise first
    return [error is not None for error in errors]


def _padded(images: int, batch_size: int, device: torch.device) -> int:
    """How many images the network is given for so many, so that each meets the shape that it would in a whole batch.

    A CPU takes a batch in chunks, so that only the last chunk is filled up.
    """
    return min(batch_size, -(-images // CHUNK) * CHUNK) if device.type == "cpu" else batch_size


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of so many items; the last may be shorter."""
    rest = iter(items)
    return iter(lambda: list(islice(rest, size)), [])


def _ahead(items: Iterator[T], count: int) -> Iterator[T]:
    """The same items, of which so many are begun before they are wanted."""
    begun: deque[T] = deque()
    for item in items:
        begun.append(item)
        if len(begun) > count:
            yield begun.popleft()
    yield from begun


def _counted(
    batches: Iterable[torch.Tensor], items: Iterable[Any], unit: str, show_progress_bar: bool
) -> Iterator[torch.Tensor]:
    """The batches, with a bar that counts their rows."""
    total = len(items) if isinstance(items, Sized) else None
    with tqdm(total=total, unit=f" {unit}", disable=not show_progress_bar) as bar:
        for embeddings_ND in batches:
            yield embeddings_ND
            bar.update(len(embeddings_ND))
