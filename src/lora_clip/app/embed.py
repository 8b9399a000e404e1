"""The Hydra entry of the job: `lora-clip embed [key=value ...]` and `python predict.py [key=value ...]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from lora_clip.app import exits
from lora_clip.app.conf import conf_folder
from lora_clip.io.process import pause_collection
from lora_clip.monitor import clock  # noqa: F401  start-up counts from here

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(arguments: Sequence[str], program: str) -> NoReturn:
    """Run the job that the arguments describe, in Hydra's own syntax, and exit with its status.

    `program` is what was typed before them.
    """
    pause_collection()
    import hydra

    typed = sys.argv

    @hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="predict")
    def embed(config: DictConfig) -> None:
        sys.argv = typed  # Lightning's launcher runs it again for every further rank
        exits.run_job(config)

    sys.argv = [typed[0], *arguments]  # Hydra reads it there
    exits.main(embed, program)
