"""The figures of a run as a text file, which node_exporter's textfile collector hands to Prometheus."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from lora_clip.io.atomic import write_text

PREFIX = "lora_clip_"
RANK = re.compile(r"rank_(\d+)/(\w+)")


class PrometheusTextfile(Logger):
    """One file with the latest value of each figure, replaced as a whole; labels are `job` and, for some, `rank`."""

    def __init__(self, path: str, job: str = "lora_clip") -> None:
        super().__init__()
        self.path, self.job = Path(path).expanduser(), job
        self._values: dict[str, float] = {}

    @property
    def name(self) -> str:
        """The job's, as its label says."""
        return self.job

    @property
    def version(self) -> str:
        """There is one file, and no older ones."""
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Words are no metrics."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Replace the file. Raises StorageError."""
        self._values |= {name: float(value) for name, value in metrics.items() if not math.isnan(value)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, "".join(f"{self._labelled(name)} {value:.15g}\n" for name, value in self._values.items()))

    def _labelled(self, name: str) -> str:
        job = self.job.replace("\\", r"\\").replace('"', r"\"")
        if found := RANK.fullmatch(name):
            return f'{PREFIX}rank_{found[2]}{{job="{job}",rank="{int(found[1])}"}}'
        return f'{PREFIX}{name.replace("/", "_")}{{job="{job}"}}'
