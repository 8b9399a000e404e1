"""A decoder in the place of nvJPEG, on the CPU, through the same interface; as a module of stages, for whole jobs.

It refuses whole files that end with REFUSED, as a decoder may that knows fewer JPEGs than their headers promise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import simplejpeg
import torch

from lora_clip.pixels import nvjpeg
from lora_clip.pixels.on_device import RefusedError
from lora_clip.types import RawSample

REFUSED = b"refused"


class StandIn:
    """libjpeg-turbo as a device's decoder; counts the files that it is given and has decoded."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.calls: list[int] = []
        self.decoded = 0

    def decode(self, jpegs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """As nvJPEG would: all of them, or none."""
        self.calls.append(len(jpegs))
        found = [self._decode(one.numpy().tobytes()) for one in jpegs]
        self.decoded += len(found)
        return found

    def _decode(self, data: bytes) -> torch.Tensor:
        try:
            if data.endswith(REFUSED):
                raise ValueError("refused")
            return torch.from_numpy(simplejpeg.decode_jpeg(data, "RGB")).permute(2, 0, 1)
        except ValueError as error:
            raise RefusedError(str(error)) from error


def install() -> None:
    """Let this process take the stand-in for nvJPEG."""
    nvjpeg.require_nvjpeg = lambda device, spec: None
    nvjpeg.open_decoder = lambda device: StandIn()


def stage(samples: Iterable[RawSample]) -> Iterator[RawSample]:
    """A stage that changes nothing: `data.stages` imports this module, and with it the stand-in."""
    yield from samples
