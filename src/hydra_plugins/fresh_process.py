"""A Hydra launcher that runs each point of a sweep in a fresh process; Hydra finds launchers in this package only."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class FreshProcessLauncher(Launcher):
    """Runs the points one after the other: a distributed job leaves state behind that the next one would trip over."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember the configuration and how to load that of a point."""
        self.config, self.loader = config, hydra_context.config_loader

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all points, print the table; raises LoraClipError if a point failed otherwise than for lack of memory."""
        from lora_clip.app import sweep
        from lora_clip.app.mistakes import without_own_model
        from lora_clip.errors import ConfigError, LoraClipError
        from lora_clip.io.addresses import is_remote

        if "TORCHELASTIC_RUN_ID" in os.environ:
            raise ConfigError("a sweep starts its own processes: type lora-clip embed -m trainer.devices=N … instead")
        if is_remote(str(self.config.output_dir)):
            raise ConfigError("a sweep compares its points in a folder: give a local output_dir")
        configs = self._checked(job_overrides)
        typed = without_own_model(job_overrides)
        points = [
            sweep.run_point(overrides, name, Path(config.output_dir), config.data.batch_size)
            for overrides, name, config in zip(typed, sweep.name_points(typed), configs, strict=True)
        ]
        sweep.finish(Path(self.config.output_dir), points)
        if failed := [point.name for point in points if point.state not in ("done", "out of memory")]:
            raise LoraClipError(f"{len(failed)} of {len(points)} points failed: {', '.join(failed)}")
        return [JobReturn(overrides=overrides, status=JobStatus.COMPLETED) for overrides in job_overrides]

    def _checked(self, job_overrides: Sequence[Sequence[str]]) -> list[DictConfig]:
        """The points' configurations, checked before the first one runs: a mistake in the last one costs no time."""
        from lora_clip.app import sweep
        from lora_clip.config import check
        from lora_clip.errors import ConfigError

        configs = [self.loader.load_sweep_config(self.config, list(overrides)) for overrides in job_overrides]
        try:
            for config in configs:
                check(config)
        except ConfigError:
            sweep.leave_nothing(Path(self.config.output_dir))
            raise
        return configs
