"""A request's body: who may send one, how large it may be, and JSON without repeated keys."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.dependencies import owner_of_header
from api.middleware import headers_of, refuse
from api.services import services_of_scope
from problems import BodyTooLarge, ServerBusy, ServiceError, UnsupportedMediaType

_ALL_BODIES = 16  # how many bodies of the largest size may be in memory at once


class BodyCheckMiddleware:
    """Receives the body of a request, if its key is valid, it is JSON by its headers, and at most `max_bytes`.

    All bodies together are bounded too, because those that arrive slowly stay in memory until they are complete.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._held = 0  # bytes of all requests that are being received

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = headers_of(scope)
        length = headers.get("content-length", "")
        if length in {"", "0"} and "transfer-encoding" not in headers:
            await self._app(scope, receive, send)
            return
        try:
            owner_of_header(services_of_scope(scope).store, headers.get("authorization"))
            self._check_headers(headers, scope["method"])
            body = await self._received(receive)
        except ServiceError as error:
            await refuse(error, scope, receive, send)
            return
        if body is None:  # the client has gone
            return
        is_replayed = False

        async def replay() -> Message:
            nonlocal is_replayed, body
            if is_replayed:
                return await receive()
            is_replayed, whole, body = True, body, None
            return {"type": "http.request", "body": whole, "more_body": False}

        await self._app(scope, replay, send)

    def _check_headers(self, headers: dict[str, str], method: str) -> None:
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_bytes:
            raise self._too_large()
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise UnsupportedMediaType(
                "Send the body as it is, without Content-Encoding.", headers={"Accept-Encoding": "identity"}
            )
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        is_patch = method == "PATCH" and media_type == "application/merge-patch+json"  # RFC 7396
        if media_type != "application/json" and not is_patch:
            raise UnsupportedMediaType("Send the body as JSON, with the header Content-Type: application/json.")

    async def _received(self, receive: Receive) -> bytes | None:
        """Return the whole body, or None if the client closes the connection before its end."""
        body = bytearray()
        try:
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return None
                piece = message.get("body", b"")
                self._held += len(piece)
                body += piece
                if len(body) > self._max_bytes:
                    raise self._too_large()
                if self._held > _ALL_BODIES * self._max_bytes:
                    raise ServerBusy("Too many large bodies arrive at once. Try again.", headers={"Retry-After": "1"})
                if not message.get("more_body", False):
                    return bytes(body)
        finally:
            self._held -= len(body)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"The body may have at most {self._max_bytes} bytes.")


class JsonRoute(APIRoute):
    """A route whose body is parsed as JSON that every parser reads alike. Raises `MalformedBody` for any other."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, called with a request that parses strictly."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_JsonRequest(request.scope, request.receive))

        return handle


class _JsonRequest(Request):
    async def json(self) -> Any:
        body = await self.body()
        try:
            return json.loads(body, object_pairs_hook=_without_repetition)
        except json.JSONDecodeError:
            raise  # FastAPI tells the place
        except UnicodeDecodeError as error:
            raise NotJsonError("The body is not UTF-8.") from error
        except RecursionError as error:
            raise NotJsonError("The body is nested too deeply.") from error
        except ValueError as error:  # a number of thousands of digits
            raise NotJsonError(f"The body has a number that is too long ({error}).") from error


class NotJsonError(json.JSONDecodeError):
    """JSON that is refused for another reason than its grammar. FastAPI turns only this exception into a 4xx."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, "", 0)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        repeated = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise NotJsonError(f"The key {repeated[:100]!r} is given twice in one object.")
    return found
