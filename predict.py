"""Embed an image collection: `python predict.py [key=value ...]`; the keys are in conf/."""

import hydra
from omegaconf import DictConfig

from lora_clip.app import exits


@hydra.main(version_base="1.3", config_path="conf", config_name="predict")
def predict(config: DictConfig) -> None:
    """Run the job that the configuration describes."""
    with exits.guard():
        from lora_clip.app.job import run

        run(config)


if __name__ == "__main__":
    exits.main(predict)
