"""Serves the page at `/` and the API's documentation at `/docs`, from files of `web/`.

Knows nothing of jobs: the page is a client of the API like any other, so its files need no API key.
"""

from __future__ import annotations

from fastapi import APIRouter, FastAPI, Request
from fastapi.staticfiles import StaticFiles
from starlette.responses import Response
from starlette.types import Scope

from attribution_reading import palette, reading_style
from settings import PROJECT_ROOT

WEB = PROJECT_ROOT / "web"
# Everything is loaded from this server, and inline scripts and styles are forbidden. Swagger's icons use `data:`.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    # Browsers revalidate each file by its ETag, so that modules of two versions are never mixed.
    "Cache-Control": "no-cache",
}


class _Files(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


_files = _Files(directory=WEB)
pages = APIRouter(include_in_schema=False)


@pages.get("/")
async def index(request: Request) -> Response:
    return await _files.get_response("index.html", request.scope)


@pages.get("/static/css/palette.css")
async def colours() -> Response:
    """The colours of scores, which the page shares with the views of a result."""
    return Response(palette.style(), media_type="text/css", headers=HEADERS)


@pages.get("/static/css/reading.css")
async def reading() -> Response:
    """The style of coloured text, which the page shares with them too."""
    return Response(reading_style.style(), media_type="text/css", headers=HEADERS)


@pages.get("/docs")
async def docs(request: Request) -> Response:
    return await _files.get_response("docs.html", request.scope)


def add_pages(app: FastAPI) -> None:
    """Serve the pages, and their files under `/static`."""
    app.include_router(pages)
    app.mount("/static", _files, name="static")
