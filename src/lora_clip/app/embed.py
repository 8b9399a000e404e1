"""The Hydra entry of the job: `lora-clip embed [key=value ...]` and `python predict.py [key=value ...]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import hydra
from omegaconf import DictConfig

from lora_clip.app import exits
from lora_clip.app.conf import conf_folder


def main(arguments: Sequence[str], program: str) -> NoReturn:
    """Run the job that the arguments describe, in Hydra's own syntax, and exit with its status.

    `program` is what was typed before them.
    """
    typed = sys.argv

    @hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="predict")
    def embed(config: DictConfig) -> None:
        sys.argv = typed  # Lightning's launcher runs it again for every further rank
        exits.run_job(config)

    sys.argv = [typed[0], *arguments]  # Hydra reads it there
    exits.main(embed, program)
