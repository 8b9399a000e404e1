"""A web application on a port of this machine, until it is interrupted."""

import uvicorn
from fastapi import FastAPI

ADDRESS = "127.0.0.1"


class Server(uvicorn.Server):
    """Says where it is once it answers."""

    async def startup(self, sockets=None) -> None:  # type: ignore[no-untyped-def]
        """Begin to listen."""
        await super().startup(sockets)
        if self.started:
            port = self.servers[0].sockets[0].getsockname()[1]
            print(f"search page: http://localhost:{port}/  (Ctrl-C ends it)", flush=True)


def listen(app: FastAPI, port: int) -> None:
    """Serve until interrupted; port 0 is any free one."""
    Server(uvicorn.Config(app, ADDRESS, port, log_level="error")).run()
