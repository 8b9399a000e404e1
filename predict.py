"""Embed an image collection: `python predict.py [key=value ...]`; --help shows the keys."""

import hydra
from omegaconf import DictConfig

from lora_clip.app import exits


@hydra.main(version_base="1.3", config_path="conf", config_name="predict")
def predict(config: DictConfig) -> None:
    """Run the job that the configuration describes."""
    exits.run_job(config)


if __name__ == "__main__":
    exits.main(predict)
