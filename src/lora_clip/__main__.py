"""`python -m lora_clip` is `lora-clip`."""

import sys

from lora_clip.app.command import main

if __name__ == "__main__":
    sys.exit(main())
