"""Decoding in a process of its own, which may die or never come back and takes nothing with it."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch

from lora_clip.pixels.decode import ImageError, prepare
from lora_clip.types import PreprocessSpec

MOST_TOLD = 4000
"""Characters of an error that are told: a pipe holds so much without being read."""


class DiedError(Exception):
    """A process that ended, or was ended, before it told anything: why."""


def run_apart(work: Callable[[], Mapping[str, Any]], seconds: float) -> dict[str, Any]:
    """What `work` returns, plain JSON, computed by a fork of this process.

    Raises DiedError where the fork dies, or takes longer than some seconds; what `work` raises is its `error`.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        _tell_and_exit(writing, work)
    os.close(writing)
    told = _hear(reading, child, seconds)
    _, status = os.waitpid(child, 0)
    if told is None:
        raise DiedError(f"took longer than {seconds:g} s")
    if not told:
        raise DiedError(f"crashed ({_how(status)})")
    found: dict[str, Any] = json.loads(told)
    return found


def prepare_apart(
    data: bytes, spec: PreprocessSpec, out_CHW: torch.Tensor, decoding: str, seconds: float
) -> tuple[int, int]:
    """As `prepare`, by a fork; `out_CHW` must lie in memory that forks share.

    Raises ImageError where it dies or takes longer than some seconds, and as `prepare` does.
    """

    def work() -> dict[str, int]:
        height, width = prepare(data, spec, out_CHW, decoding)
        return {"height": height, "width": width}

    try:
        found = run_apart(work, seconds)
    except DiedError as error:
        raise ImageError(f"the decoder {error}") from error
    if "error" in found:
        raise ImageError(found["error"])
    return found["height"], found["width"]


def _tell_and_exit(writing: int, work: Callable[[], Mapping[str, Any]]) -> None:
    """In the fork: work, tell, and leave without a trace."""
    told: Mapping[str, Any]
    try:
        torch.set_num_threads(1)  # a fork has none of its parent's other threads, and would wait for them
        told = work()
    except BaseException as error:
        told = {"error": (str(error) or type(error).__name__)[:MOST_TOLD]}
    with suppress(OSError):
        os.write(writing, json.dumps(told).encode())
    os._exit(0)


def _hear(reading: int, child: int, seconds: float) -> bytes | None:
    """What the fork tells: nothing where it dies, None where it is killed after some seconds."""
    with os.fdopen(reading, "rb") as pipe:
        if not select.select([pipe], [], [], seconds)[0]:
            os.kill(child, signal.SIGKILL)
            return None
        return pipe.read()


def _how(status: int) -> str:
    if not os.WIFSIGNALED(status):
        return f"exit status {os.waitstatus_to_exitcode(status)}"
    number = os.WTERMSIG(status)
    return f"signal {number}: {signal.strsignal(number)}"
