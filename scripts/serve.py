"""A search page on this machine: `python scripts/serve.py OUTPUT [OUTPUT …]`, then open the address that it prints.

Several outputs (one with the adapter, one without) can be switched between on the page.
"""

import argparse
import sys
from pathlib import Path

import uvicorn

from lora_clip.errors import LoraClipError
from lora_clip.search.server import build_app, open_outputs

ADDRESS = "127.0.0.1"


class Server(uvicorn.Server):
    """Says where it is once it answers."""

    async def startup(self, sockets=None) -> None:  # type: ignore[no-untyped-def]
        """Begin to listen."""
        await super().startup(sockets)
        if self.started:
            port = self.servers[0].sockets[0].getsockname()[1]
            print(f"search page: http://localhost:{port}/  (Ctrl-C ends it)", flush=True)


def main() -> int:
    """Serve until interrupted, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "outputs", metavar="OUTPUT", nargs="+", type=Path, help="the output_dir of a job, or of a sweep"
    )
    parser.add_argument("--port", type=int, default=8765, help="0: any free one (default: 8765)")
    given = parser.parse_args()
    try:
        app = build_app(open_outputs(given.outputs))
    except LoraClipError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    Server(uvicorn.Config(app, ADDRESS, given.port, log_level="error")).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
