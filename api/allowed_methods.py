"""HEAD wherever GET is, OPTIONS everywhere, and the methods that a path has."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.responses import Response
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_OF_ROUTES = ("GET", "POST", "PUT", "PATCH", "DELETE")


class HeadMiddleware:
    """Answers HEAD as GET without the body (RFC 9110, section 9.3.2)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            await self._app({**scope, "method": "GET"}, receive, _without_body(send))
        else:
            await self._app(scope, receive, send)


class OptionsMiddleware:
    """Answers OPTIONS with 204 and `Allow` (RFC 9110, section 9.3.7), and allows no other origin (CORS).

    OPTIONS of an unknown path goes on to the app, which refuses it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "OPTIONS" and (allow := _allow(scope)):
            await Response(status_code=204, headers={"Allow": allow})(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def methods_of(app: FastAPI, path: str) -> list[str]:
    """Return the methods that this path has; empty if there is no such path."""
    methods = [method for method in _OF_ROUTES if any(_has(route, path, method) for route in app.routes)]
    return [*methods, *(["HEAD"] if "GET" in methods else []), *(["OPTIONS"] if methods else [])]


def _has(route: object, path: str, method: str) -> bool:
    if isinstance(route, Mount) and method != "GET":  # of static files; it leaves the method to its app
        return False
    match, _ = route.matches({"type": "http", "path": path, "root_path": "", "method": method})  # type: ignore[attr-defined]
    return bool(match is Match.FULL)


def _allow(scope: Scope) -> str:
    methods = [*_OF_ROUTES, "HEAD", "OPTIONS"] if scope["path"] == "*" else methods_of(scope["app"], scope["path"])
    return ", ".join(methods)


def _without_body(send: Send) -> Send:
    """Return a `send` that ends the response after its headers, so that an event stream ends too."""
    is_complete = False

    async def send_headers(message: Message) -> None:
        nonlocal is_complete
        if is_complete:
            return
        await send(message)
        if message["type"] == "http.response.start":
            is_complete = True
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return send_headers
