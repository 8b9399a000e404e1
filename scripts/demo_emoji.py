"""The pictures that the embedded demo is trained on and shows: Noto emoji on many grounds, and as film negatives.

from demo_emoji import load_emoji, render, negative
emoji = load_emoji(Path("emoji-datasource-google-16.0.0.tgz"))
pixels_BCHW = render(emoji.images_NRHW[:8], generator)
"""

from __future__ import annotations

import io
import json
import math
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

PACKAGE = "emoji-datasource-google@16.0.0"
"""On npm: Noto emoji (Apache-2.0) with the names of iamcal/emoji-data (MIT)."""
NOTO = "https://github.com/googlefonts/noto-emoji"
FILM = (1.0, 0.72, 0.48)
"""How much red, green and blue the orange mask of a colour negative lets through."""


@dataclass(frozen=True)
class Emoji:
    """`images_NRHW`: R = 4, red, green and blue times opacity, then opacity, float32 in 0..1.

    `texts[n]` is what emoji n is called, its name first; `urls[n]` where its drawing comes from.
    """

    names: list[str]
    texts: list[list[str]]
    images_NRHW: torch.Tensor
    urls: list[str]


def download(folder: Path) -> Path:
    """The package, from the npm registry that this machine is set up for, as `npm pack` leaves it in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["npm", "pack", PACKAGE], cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return folder / done.stdout.split()[-1]


def load_emoji(package: Path) -> Emoji:
    """All emoji of the package, in its order; the second of two with one name is left out."""
    with tarfile.open(package) as tar:
        files = {member.name: tar.extractfile(member) for member in tar if _wanted(member.name)}
        contents = {name: file.read() for name, file in files.items() if file}
    entries = json.loads(contents["package/emoji.json"])
    named = {spoken(entry["name"]): entry for entry in reversed(entries) if entry["has_img_google"]}
    names = list(reversed(named))
    images = [_read(contents[f"package/img/google/64/{named[name]['image']}"]) for name in names]
    texts = [[name, *_synonyms(name, named[name])] for name in names]
    return Emoji(names, texts, torch.stack(images), [_url(named[name]) for name in names])


def _wanted(name: str) -> bool:
    return name == "package/emoji.json" or name.startswith("package/img/google/64/")


def _read(data: bytes) -> torch.Tensor:
    image_HWR = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"), np.float32) / 255
    image_RHW = torch.from_numpy(image_HWR).permute(2, 0, 1)
    return torch.cat([image_RHW[:3] * image_RHW[3:], image_RHW[3:]])


def spoken(name: str) -> str:
    """A name as one would type it: RED APPLE, red apple; FLEUR-DE-LIS, fleur de lis; Chad Flag, flag of chad."""
    words = "".join(char if char.isalnum() or char in "'#*" else " " for char in name.lower()).split()
    return " ".join(["flag", "of", *words[:-1]] if words[-1] == "flag" else words)


def _synonyms(name: str, entry: dict[str, object]) -> list[str]:
    short: list[str] = entry["short_names"]  # type: ignore[assignment]
    found = [spoken(other) for other in short if not other.startswith("flag-")]
    return [other for other in dict.fromkeys(found) if other and other != name]


def _url(entry: dict[str, Any]) -> str:
    """The drawing in Noto's own repository, where flags are kept apart."""
    if entry["category"] == "Flags":
        return f"{NOTO}/tree/main/third_party/region-flags"
    points = [point.lower() for point in entry["unified"].split("-") if point != "FE0F"]
    return f"{NOTO}/blob/main/png/128/emoji_u{'_'.join(points)}.png"


# --- Rendering -----------------------------------------------------------------------------------------------------


def render(images_NRHW: torch.Tensor, generator: torch.Generator, size: tuple[int, int] = (64, 64)) -> torch.Tensor:
    """Each emoji turned, moved and scaled at random on a ground of its own: (N, 3, *size) float32 in 0..1."""
    placed_NRHW = _place(images_NRHW, generator, size)
    grounds_N3HW = _grounds(len(images_NRHW), generator, size)
    return (placed_NRHW[:, :3] + grounds_N3HW * (1 - placed_NRHW[:, 3:])).clamp(0, 1)


def _place(images_NRHW: torch.Tensor, generator: torch.Generator, size: tuple[int, int]) -> torch.Tensor:
    count = len(images_NRHW)
    scale, angle = _uniform(count, 0.68, 1.05, generator), _uniform(count, -0.2, 0.2, generator)
    shift_N2 = torch.stack([_uniform(count, -0.12, 0.12, generator) for _ in range(2)], 1)
    edge = min(size)
    rows_HW, columns_HW = torch.meshgrid(
        *((torch.arange(length) + 0.5 - length / 2) * 2 / edge for length in size), indexing="ij"
    )
    at_NHW2 = torch.stack([columns_HW, rows_HW], -1) - shift_N2[:, None, None]
    cos, sin = (value[:, None, None] for value in (torch.cos(angle) / scale, torch.sin(angle) / scale))
    x, y = at_NHW2.unbind(-1)
    grid_NHW2 = torch.stack([cos * x - sin * y, sin * x + cos * y], -1)
    return functional.grid_sample(images_NRHW, grid_NHW2, align_corners=False)


def _grounds(count: int, generator: torch.Generator, size: tuple[int, int]) -> torch.Tensor:
    """From one colour to another in some direction, with some grain."""
    from_N3, to_N3 = (torch.rand(count, 3, generator=generator) for _ in range(2))
    to_N3 = from_N3 + (to_N3 - from_N3) * torch.rand(count, 1, generator=generator) ** 2
    angle = _uniform(count, 0, 2 * math.pi, generator)[:, None, None]
    rows_HW, columns_HW = torch.meshgrid(*(torch.linspace(-0.5, 0.5, length) for length in size), indexing="ij")
    way_N1HW = (0.5 + (torch.cos(angle) * columns_HW + torch.sin(angle) * rows_HW) / 1.42)[:, None]
    grounds_N3HW = torch.lerp(from_N3[..., None, None], to_N3[..., None, None], way_N1HW)
    grain = _uniform(count, 0, 0.05, generator)[:, None, None, None]
    return grounds_N3HW + grain * torch.randn(grounds_N3HW.shape, generator=generator)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def negative(pixels_N3HW: torch.Tensor) -> torch.Tensor:
    """The same as a scan of a colour negative: light and dark exchanged, behind an orange mask."""
    mask_3HW = torch.tensor(FILM)[:, None, None]
    return mask_3HW * (0.95 - 0.85 * pixels_N3HW)
