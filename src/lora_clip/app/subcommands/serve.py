"""`lora-clip serve OUTPUT [OUTPUT …]`, then open the address that it prints.

Several outputs (one with the adapter, one without) can be switched between on the page.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lora_clip.extras import SEARCH, require

PORT = 8765


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument(
        "outputs", metavar="OUTPUT", nargs="+", type=Path, help="the output_dir of a job, or of a sweep"
    )
    parser.add_argument("--port", type=int, default=PORT, help=f"0: any free one (default: {PORT})")


def run(given: argparse.Namespace) -> int:
    """Serve until interrupted. Raises a LoraClipError."""
    require(SEARCH, "fastapi", "uvicorn")
    from lora_clip.search.listen import listen
    from lora_clip.search.server import build_app, open_outputs

    listen(build_app(open_outputs(given.outputs)), given.port)
    return 0
