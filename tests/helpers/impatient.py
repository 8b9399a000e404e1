"""The job, as predict.py starts it, with ranks that give one another up soon after the gate (`GATE`) was opened."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

from lora_clip.app import embed
from lora_clip.loading import company


def shorten() -> None:
    """Wait for the gate; until then ranks are as patient as ever, however slow the machine."""
    while not Path(os.environ["GATE"]).exists():
        time.sleep(0.05)
    company.PATIENCE = 4.0


company.SECONDS_BETWEEN_WORDS = company.SECONDS_BETWEEN_LOOKS = 0.2
threading.Thread(target=shorten, daemon=True).start()
embed.main(sys.argv[1:], "python predict.py")
