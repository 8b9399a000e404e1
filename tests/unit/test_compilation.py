"""model.compile=auto: what is chosen, why, and that every rank does the same."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora_clip.app import compilation
from lora_clip.app.compilation import COMPILE_FROM, decide
from lora_clip.models.compute import Compute
from lora_clip.models.module import EmbeddingModule
from lora_clip.output.notes import RunNotes

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MANY = COMPILE_FROM


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's name, and all that its compiler needs."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(compilation, "installed", lambda name: True)
    monkeypatch.setattr(compilation.shutil, "which", lambda name: f"/usr/bin/{name}")


def ran(compiled: bool, device: str = "NVIDIA H100") -> RunNotes:
    return RunNotes(device, compiled, None, 256)


@pytest.mark.parametrize("asked", [True, False])
def test_who_says_it_gets_it(asked: bool) -> None:
    assert decide(asked, CPU, 1, [ran(not asked)]) == (asked, None)


@pytest.mark.parametrize(
    ("device", "images", "earlier", "compiled", "why"),
    [
        (CUDA, MANY, [], True, "pays from 4,000,000 images on"),
        (CUDA, MANY - 1, [], False, "pays from 4,000,000 images on; 3,999,999 are to be embedded"),
        (CPU, MANY, [], False, "on a GPU only"),
        (CUDA, 10, [ran(True)], True, "as the rows that are there"),
        (CUDA, MANY, [ran(True), ran(False)], False, "as the rows that are there"),
        (CUDA, MANY, [ran(False, "NVIDIA A100")], True, "pays from"),
    ],
)
def test_auto_compiles_long_jobs_on_a_gpu_and_says_why(
    device: torch.device, images: int, earlier: Sequence[RunNotes], compiled: bool, why: str
) -> None:
    chosen, said = decide("auto", device, images, earlier)
    assert chosen is compiled and said is not None and why in said
    assert said.startswith(f"model.compile=auto: {'compiled' if compiled else 'not compiled'}, ") and "\n" not in said


def test_auto_does_without_a_compiler_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation.shutil, "which", lambda name: None)
    assert (
        decide("auto", CUDA, MANY, [])[1]
        == "model.compile=auto: not compiled, since a C compiler is not installed here"
    )
    monkeypatch.setattr(compilation, "installed", lambda name: False)
    assert "since triton is not installed" in str(decide("auto", CUDA, MANY, [])[1])


@pytest.mark.parametrize(
    ("asked", "planned", "compiled"),
    [(None, True, True), (None, False, False), (None, None, False), (True, False, True), (False, True, False)],
)
def test_every_rank_does_what_the_plan_says(asked: bool | None, planned: bool | None, compiled: bool) -> None:
    module = EmbeddingModule([], Compute(compile=asked), torch.float32)
    plan = None if planned is None else SimpleNamespace(compile=planned, needed=frozenset())
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=CPU), datamodule=SimpleNamespace(plan=plan))
    module._trainer = trainer
    module.configure_model()
    assert module.compute.compile is compiled
