"""A collection of synthetic photographs in tars, the same from the same seed, to measure on where there is no other.

JPEGs with the statistics that cost a decoder and a resize their time: edges of all sizes (a dead-leaves model, Lee,
Mumford and Huang 2001), 1/f texture and sensor noise, in the usual sizes of ImageNet's photographs and at their 5 bits
a pixel; a share of them has 12 megapixels.
"""

from __future__ import annotations

import io
import json
import tarfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, ImageDraw
from tqdm import tqdm

from lora_clip.errors import ConfigError
from lora_clip.io.atomic import replaced, write_text
from lora_clip.io.process import cores

RECORD = "collection.json"
IMAGES_PER_SHARD = 512
SIZES = ((500, 375), (375, 500), (500, 333), (333, 500), (500, 500), (640, 480), (400, 300), (300, 225), (250, 200))
WEIGHTS = (0.40, 0.13, 0.12, 0.05, 0.05, 0.05, 0.08, 0.06, 0.06)
"""How often a (width, height) stands in the collection; ImageNet's usual ones."""
LARGE = (4000, 3000)
TEXTURE = 1024
QUALITY, LARGE_QUALITY = 93, 88


@dataclass(frozen=True)
class Collection:
    """What a collection holds: `large_share` of its images have 12 megapixels."""

    images: int
    large_share: float = 0.01
    seed: int = 0

    @property
    def shards(self) -> int:
        """How many tars it has."""
        return -(-self.images // IMAGES_PER_SHARD)


def make(folder: Path, collection: Collection) -> Path:
    """The collection in `folder`, made as far as it is not there yet. Raises ConfigError where another one is there."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = asdict(collection)
    record = folder / RECORD
    if record.exists() and (found := json.loads(record.read_text())) != wanted:
        raise ConfigError(f"{folder} holds another collection ({found}): name another folder, or delete this one")
    write_text(record, json.dumps(wanted))
    missing = [shard for shard in range(collection.shards) if not _path(folder, shard).exists()]
    if missing:
        with ProcessPoolExecutor(cores()) as pool:
            made = pool.map(_make_shard, [folder] * len(missing), [collection] * len(missing), missing)
            list(tqdm(made, desc=f"making {collection.images:,} photographs", total=len(missing), unit=" shards"))
    return folder


def _path(folder: Path, shard: int) -> Path:
    return folder / f"{shard:05d}.tar"


def _make_shard(folder: Path, collection: Collection, shard: int) -> None:
    """One tar, which appears when it is whole."""
    start = shard * IMAGES_PER_SHARD
    with replaced(_path(folder, shard)) as file, tarfile.open(fileobj=file, mode="w") as tar:
        for number in range(start, min(start + IMAGES_PER_SHARD, collection.images)):
            data = photograph(collection, number)
            member = tarfile.TarInfo(f"{number:08d}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def photograph(collection: Collection, number: int) -> bytes:
    """The JPEG of a number."""
    random = np.random.default_rng((collection.seed, number))
    large = random.random() < collection.large_share
    width, height = LARGE if large else SIZES[random.choice(len(SIZES), p=WEIGHTS)]
    leaves_HWC = _leaves(random, width, height)
    texture_HW1 = _crop(random, _texture(collection.seed), width, height)[..., None]
    noise_HWC = _crop(random, _noise(collection.seed), width, height)
    pixels_HWC = leaves_HWC * (1 + random.uniform(0.1, 0.3) * texture_HW1) + random.uniform(2, 9) * noise_HWC
    pixels_HWC = np.ascontiguousarray(pixels_HWC.clip(0, 255).astype(np.uint8))
    quality = LARGE_QUALITY if large else QUALITY
    return simplejpeg.encode_jpeg(pixels_HWC, quality, "RGB", "420")


def _leaves(random: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Discs and rotated boxes that hide one another, their sizes after a power law, float32 (H, W, 3)."""
    palette_PC = random.integers(60, 196, (6, 1)) + random.integers(-40, 41, (6, 3))
    image = Image.new("RGB", (width, height), tuple(int(value) for value in palette_PC[0]))
    draw = ImageDraw.Draw(image)
    edge = min(width, height)
    for radius in edge * 0.012 * random.power(1.5, 260) ** -1.4:
        x, y, angle = random.uniform(0, width), random.uniform(0, height), random.uniform(0, 90)
        colour = tuple(int(value) for value in palette_PC[random.integers(6)] + random.integers(-20, 21, 3))
        sides = int(random.choice([4, 24]))
        draw.regular_polygon((x, y, min(float(radius), edge / 3)), sides, angle, colour)
    return np.asarray(image, np.float32)


def _crop(random: np.random.Generator, pattern: np.ndarray, width: int, height: int) -> np.ndarray:
    """A part of a pattern, which continues itself beyond its edges."""
    top, left = random.integers(0, TEXTURE, 2)
    rows, columns = (top + np.arange(height)) % TEXTURE, (left + np.arange(width)) % TEXTURE
    return pattern[rows[:, None], columns]


@cache
def _texture(seed: int) -> np.ndarray:
    """Noise whose amplitude falls as 1/f, as that of photographs does; float32 (TEXTURE, TEXTURE), unit variance."""
    spectrum = np.fft.rfft2(np.random.default_rng(seed).standard_normal((TEXTURE, TEXTURE)))
    frequency = np.hypot(np.fft.fftfreq(TEXTURE)[:, None], np.fft.rfftfreq(TEXTURE)[None])
    frequency[0, 0] = np.inf
    texture = np.fft.irfft2(spectrum / frequency, (TEXTURE, TEXTURE))
    return (texture / texture.std()).astype(np.float32)


@cache
def _noise(seed: int) -> np.ndarray:
    """White noise, float32 (TEXTURE, TEXTURE, 3), unit variance."""
    return np.random.default_rng((seed, 1)).standard_normal((TEXTURE, TEXTURE, 3), np.float32)
