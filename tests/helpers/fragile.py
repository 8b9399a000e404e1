"""A program that gets SIGTERM in the middle of a destructor: a test's script."""

import os
import signal

from lora_clip.app import exits


class Fragile:
    """Its destructor is interrupted."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def predict() -> None:
    """Let one go."""
    del (made := [Fragile()])[0]
    print("went on", made)


exits.main(predict)
