"""What the steps measure with: models of random weights, and a few hundred photographs repeated into many tars."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from lora_clip.benchmark.collection import Collection, photograph
from lora_clip.benchmark.gpu.findings import Figure, Findings
from lora_clip.benchmark.gpu.sizes import Settings
from lora_clip.benchmark.models import make_random
from lora_clip.benchmark.photographs import list_photographs
from lora_clip.errors import ConfigError
from lora_clip.io.atomic import replaced, temporary_name
from lora_clip.io.process import cores
from lora_clip.terminal import count_of


def make(settings: Settings, findings: Findings) -> None:
    """Make all of it, and tell how long that took."""
    sizes = settings.sizes
    for images in sorted({sizes.job, sizes.long_job, sizes.varied, sizes.checked}):
        findings.attempt(partial(_shards_figure, settings, images), photographs=images)
    for name in (sizes.small, sizes.large):
        findings.attempt(partial(_model_figure, settings, name), model=name)


def _shards_figure(settings: Settings, images: int) -> Figure:
    began = time.monotonic()
    tars = len(list(shards(settings, images).glob("*.tar")))
    note = f"{count_of(tars, 'tar')} of the same {settings.sizes.photographs} photographs"
    return Figure(round(time.monotonic() - began, 2), "s", note)


def _model_figure(settings: Settings, name: str) -> Figure:
    began = time.monotonic()
    base, adapter = model(settings, name)
    size = sum(path.stat().st_size for folder in (base, adapter) for path in folder.glob("*.safetensors"))
    return Figure(round(time.monotonic() - began, 2), "s", f"{size / 1e6:,.0f} MB")


def model(settings: Settings, name: str) -> tuple[Path, Path]:
    """The folders of a base of random weights and an adapter."""
    return make_random(settings.folder / "models", name)


def shards(settings: Settings, images: int) -> Path:
    """A folder with so many images in tars: one tar under many names, since storage is not what is measured."""
    each = settings.sizes.photographs
    if images % each:
        raise ConfigError(f"{images} images are no whole number of tars of {each}")
    folder, tar = settings.folder / f"gpu-images-{each}-{images}", pool(settings)
    if not folder.exists():
        unfinished = temporary_name(folder)
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        for number in range(images // each):
            _link(tar, unfinished / f"{number:05d}.tar")
        unfinished.replace(folder)
    return folder


def _link(tar: Path, path: Path) -> None:
    try:
        os.link(tar, path)
    except OSError:  # a file system without hard links
        shutil.copyfile(tar, path)


def pool(settings: Settings) -> Path:
    """The tar of all photographs."""
    number = settings.sizes.photographs
    path = settings.folder / f"gpu-photographs-{number}" / "00000.tar"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(cores()) as processes:
            made = list(processes.map(partial(photograph, Collection(number, 0.0)), range(number), chunksize=8))
        _write(path, made)
    return path


def _write(path: Path, photographs: Sequence[bytes]) -> None:
    with replaced(path) as file, tarfile.open(fileobj=file, mode="w") as tar:
        for number, data in enumerate(photographs):
            member = tarfile.TarInfo(f"{number:08d}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def photographs(settings: Settings, number: int) -> list[bytes]:
    """The first JPEGs of them."""
    return [one.read() for one in list_photographs(pool(settings).parent, number)]
