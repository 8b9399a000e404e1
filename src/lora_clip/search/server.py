"""The search page: a small local web server over one or several outputs.

Nothing that comes from the data or from a visitor is trusted: the page's own script writes texts as texts, its policy
allows no others, uploads are decoded as the job decodes images and kept nowhere, and only names of this machine are
answered to, so that no other site's page can read along (DNS rebinding).
"""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.middleware.trustedhost import TrustedHostMiddleware

from lora_clip.diagnose.summary import describe_model
from lora_clip.errors import DataError, LoraClipError
from lora_clip.output import provenance
from lora_clip.pixels.decode import ImageError
from lora_clip.report.pages import WEB
from lora_clip.search.collection import Collection, Hit, open_output

MOST_BYTES = 64 << 20
"""Of an uploaded image."""
HITS, MOST_HITS, MOST_LETTERS, MOST_PIXELS = 24, 200, 1000, 1024
Wanted = Annotated[int, Query(ge=1, le=MOST_HITS)]
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
HOSTS = ["localhost", "127.0.0.1", "[::1]"]


def open_outputs(folders: list[Path]) -> dict[str, Collection]:
    """The outputs to be served, by name; a folder of outputs, as a sweep leaves it, stands for all in it.

    Raises OutputError where there is none.
    """
    roots = [root for folder in folders for root in _outputs_in(folder.expanduser())]
    names = [root.resolve().name for root in roots]
    unique = [name if names.count(name) == 1 else str(root.resolve()) for name, root in zip(names, roots, strict=True)]
    return {name: open_output(root) for name, root in zip(unique, roots, strict=True)}


def _outputs_in(folder: Path) -> list[Path]:
    if provenance.read_fingerprint(folder) is not None:
        return [folder]
    found = sorted(path.parent for path in folder.glob("*/fingerprint.json"))
    if not found:
        provenance.require_fingerprint(folder)
    return found


def build_app(collections: Mapping[str, Collection]) -> FastAPI:
    """The application: the page, what it asks for, and the pictures."""
    app = FastAPI(title="lora_clip search", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)
    app.middleware("http")(_with_headers)
    site = Site(collections)
    app.add_api_route("/api/outputs", site.outputs)
    app.add_api_route("/api/search", site.by_text)
    app.add_api_route("/api/search", site.by_image, methods=["POST"])
    app.add_api_route("/api/like", site.like)
    app.add_api_route("/api/picture", site.picture)
    app.mount("/", StaticFiles(directory=WEB, html=True))
    return app


class Site:
    """What the page asks for, a method a question; searches take turns, since each uses all cores."""

    def __init__(self, collections: Mapping[str, Collection]) -> None:
        self._collections = collections
        self._turns = asyncio.Lock()

    def outputs(self) -> list[dict[str, Any]]:
        """What may be searched."""
        return [_described(name, collection) for name, collection in self._collections.items()]

    async def by_text(
        self, output: str, query: Annotated[str, Query(min_length=1, max_length=MOST_LETTERS)], k: Wanted = HITS
    ) -> JSONResponse:
        """The images nearest to a text."""
        return await self._answer(output, lambda collection: collection.search_text(query, k))

    async def by_image(self, request: Request, output: str, k: Wanted = HITS) -> JSONResponse:
        """The images nearest to the one whose file is the request's body."""
        image = await _upload(request)
        return await self._answer(output, lambda collection: collection.search(image, k))

    async def like(self, output: str, shard: int, row: int, k: Wanted = HITS) -> JSONResponse:
        """The images nearest to one of them."""
        return await self._answer(output, lambda collection: collection.like(shard, row, k))

    def picture(
        self, output: str, shard: int, row: int, pixels: Annotated[int, Query(ge=16, le=MOST_PIXELS)] = 320
    ) -> Response:
        """An image as a small JPEG."""
        try:
            data = self._chosen(output).hit(shard, row).thumbnail(pixels)
        except LoraClipError as error:
            raise HTTPException(404, str(error)) from error
        if data is None:
            raise HTTPException(404, "no picture")
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "max-age=3600"})

    async def _answer(self, output: str, find: Callable[[Collection], list[Hit]]) -> JSONResponse:
        collection = self._chosen(output)
        try:
            async with self._turns:
                hits = await asyncio.to_thread(find, collection)
        except (DataError, ImageError) as error:
            raise HTTPException(400, str(error)) from error
        except LoraClipError as error:
            raise HTTPException(409, str(error)) from error
        return JSONResponse([_shown(hit) for hit in hits])

    def _chosen(self, name: str) -> Collection:
        if name not in self._collections:
            raise HTTPException(404, f"no output is called {name}")
        return self._collections[name]


async def _with_headers(request: Request, call_next: Callable[[Request], Any]) -> Response:
    response: Response = await call_next(request)
    response.headers.update(HEADERS)
    return response


async def _upload(request: Request) -> bytes:
    """The request's body: an image file."""
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > MOST_BYTES:
            raise HTTPException(413, f"the image has more than {MOST_BYTES >> 20} MiB")
    return bytes(received)


def _described(name: str, collection: Collection) -> dict[str, Any]:
    model = describe_model(collection.manifest)
    kind = "adapter" if collection.manifest["model"]["adapter"] else "base"
    return {"name": name, "kind": kind, "model": model, "images": len(collection)}


def _shown(hit: Hit) -> dict[str, Any]:
    """What the page needs of a hit."""
    return {
        "score": round(hit.score, 4),
        "key": hit.key,
        "caption": hit.caption,
        "image_path": hit.image_path,
        "shard": hit.shard_id,
        "row": hit.row,
        "width": hit.width,
        "height": hit.height,
    }
