"""Embed an image collection: `python predict.py [key=value ...]`, as `lora-clip embed`; the keys are in conf/."""

import sys

from lora_clip.app import embed

if __name__ == "__main__":
    embed.main(sys.argv[1:], "python predict.py")
