"""What passes from one stage of the job to the next.

Legend of shapes, used as suffixes of tensor names everywhere:
    B  images in a batch (fixed: the last batch of a work range is padded)
    N  images in a range or shard
    C  colour channels, 3 (RGB)
    H, W  the model's image size in pixels
    D  width of an embedding

An image's identity is (shard, position): the shard's id and the image's ordinal in the shard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch  # who only lists or packs files need not wait for it


UNCOUNTED = 2**62
"""In place of a number of images, where nobody has looked into the shard yet."""


class WorkRange(NamedTuple):
    """A run of positions [start, stop) of one shard: the unit that a worker reads and a writer commits.

    It is cut into batches from `start` on, so that a row's batch does not depend on who takes the range. `stop` is
    UNCOUNTED in a plan where it is the end of a shard that nobody has counted yet; never in a batch.
    """

    shard: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class RawSample:
    """One image as it lies in the input: undecoded bytes and the files that share its key.

    `path` names the image for people; `extras` maps an extension (`txt`, `json`) to that file's bytes.
    `damage` is set in place of `image` where the source could not deliver the bytes, and says why; `filtered` where a
    stage of `data.stages` leaves the image out. `work` is the range that asked for it, known while it is loaded.
    """

    shard: int
    position: int
    key: str
    path: str
    image: bytes
    extras: Mapping[str, bytes] = field(default_factory=dict)
    damage: str | None = None
    filtered: str | None = None
    work: WorkRange | None = field(default=None, compare=False, repr=False)

    def leave_out(self, reason: str) -> RawSample:
        """The sample as a reject of stage `filter`: how a stage of `data.stages` drops an image."""
        return replace(self, image=b"", filtered=reason)

    def during(self, work: WorkRange) -> RawSample:
        """The sample as one of a range that is being loaded."""
        return replace(self, work=work)


@dataclass(frozen=True, slots=True)
class ImageRow:
    """What is recorded of an embedded image besides its embedding; width and height are the original's, in pixels."""

    image_path: str
    key: str
    shard: int
    position: int
    width: int
    height: int
    caption: str | None
    url: str | None
    metadata: str | None

    @property
    def text(self) -> str:
        """The caption as a text to embed and to ask for; empty where there is none."""
        return (self.caption or "").strip()


@dataclass(frozen=True, slots=True)
class Reject:
    """An image that could not be embedded: at which `stage` (read, filter, decode, encode) and why."""

    shard: int
    position: int
    key: str
    stage: str
    error: str


@dataclass(frozen=True)
class PreprocessSpec:
    """How pixels are made: resize (shortest edge, or height and width), centre crop, then (x * scale - mean) / std.

    Sizes in pixels; `resize` None leaves the size as it is. `interpolation` is the name of one of Pillow's filters.
    `orientation` is what is done with the EXIF tag: `ignore`, as transformers' processors do, or `exif`: turn upright.
    As open_clip has it: `longest`, the resize is that of the longest edge; `centre`, where half a pixel of the crop is
    rounded (`floor`, transformers', or `round`, torchvision's).
    """

    resize: int | tuple[int, int] | None
    crop: tuple[int, int]
    interpolation: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    orientation: str = "ignore"
    longest: bool = False
    centre: str = "floor"

    def to_json(self) -> dict[str, Any]:
        """The spec as plain JSON values, for the fingerprint; what has a default only where it is something else."""
        own = {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) != one.default}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}


@dataclass(slots=True)
class PixelBatch:
    """Some images of one work range, decoded: `pixels_BCHW` uint8, of which the first `len(rows)` are images.

    `last` marks the end of the range; `seconds` is the worker time spent on the batch, by stage, `bytes` what was read
    of encoded images. With the last batch of a range comes its shard as JSON, if a worker had to count it (`counted`).
    """

    pixels_BCHW: torch.Tensor
    rows: list[ImageRow]
    rejects: list[Reject]
    work: WorkRange
    last: bool
    seconds: dict[str, float] = field(default_factory=dict)
    bytes: int = 0
    counted: Mapping[str, Any] | None = None

    def to(self, device: torch.device) -> PixelBatch:
        """The same batch with its pixels on `device`; Lightning calls this to move a batch."""
        # Only CUDA's copies from page-locked memory are sure to be done before that memory is used again
        return replace(self, pixels_BCHW=self.pixels_BCHW.to(device, non_blocking=device.type == "cuda"))

    def pin_memory(self) -> PixelBatch:
        """The same batch with its pixels in page-locked memory; the DataLoader calls this."""
        return replace(self, pixels_BCHW=self.pixels_BCHW.pin_memory())

    def release(self) -> None:
        """Say that the pixels were read and their memory may be used again."""


@dataclass(slots=True)
class EmbeddedBatch:
    """A PixelBatch after the model: `embeddings_BD` of unit L2 norm, in the output's dtype, with or without padding.

    `texts_BD` are those of its captions, in the same places; None where only images are embedded.
    """

    embeddings_BD: torch.Tensor
    rows: list[ImageRow]
    rejects: list[Reject]
    work: WorkRange
    last: bool
    counted: Mapping[str, Any] | None = None
    texts_BD: torch.Tensor | None = None
