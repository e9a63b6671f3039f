"""What happens to every request before any route, one concern each: headers, id and failures, host, body.

Pure ASGI, so that streams pass through unbuffered. Starlette's own host check answers plain text and splits an IPv6
host at its first colon, so the one here is ours.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problem_responses import problem_response
from problems import BodyTooLarge, ServiceError, UnsupportedMediaType, WrongHost

log = structlog.get_logger(__name__)
# Request ids are no secrets. `os.urandom` would release the interpreter's lock, for which the event loop then waits.
_ids = random.Random()  # noqa: S311

_SECURITY_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
# A browser runs and loads nothing from a response of the API; a response that is a page sets a policy of its own.
_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")


class SecurityHeadersMiddleware:
    """Adds security headers to every response, and a Content-Security-Policy to those without one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", []))
                has_policy = any(name.lower() == _POLICY[0] for name, _ in headers)
                message["headers"] = [*headers, *_SECURITY_HEADERS, *([] if has_policy else [_POLICY])]
            await send(message)

        await self._app(scope, receive, send_with_headers)


class RequestIdMiddleware:
    """Gives every request an id, in the log and in the response (`X-Request-ID`).

    An unexpected exception is logged with the id and answered with a problem document.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"{_ids.getrandbits(128):032x}"
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            except Exception:
                log.exception("request_failed", path=scope["path"])
                if started:
                    raise
                failure = ServiceError(
                    "The server failed unexpectedly; its log has the reason under this X-Request-ID."
                )
                await problem_response(failure.to_problem(scope["path"]))(scope, receive, send_with_id)


class HostCheckMiddleware:
    """Refuses a request whose Host header names another host (DNS rebinding). `*` in `allowed_hosts` allows any."""

    def __init__(self, app: ASGIApp, allowed_hosts: Sequence[str]) -> None:
        self._app = app
        self._allowed_hosts = frozenset(allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            header = _headers(scope).get("host", "")
            host = header[: header.rindex(":")] if re.search(r":\d+$", header) else header
            if "*" not in self._allowed_hosts and host.lower() not in self._allowed_hosts:
                error = WrongHost(
                    f"This server does not answer to the host {host!r}. The operator can add it to "
                    "INSEQ_API_ALLOWED_HOSTS."
                )
                await _refuse(error, scope, receive, send)
                return
        await self._app(scope, receive, send)


class BodyCheckMiddleware:
    """Refuses a body that is not JSON by its Content-Type, or larger than `max_bytes`, while it is being received."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in {"POST", "PUT", "PATCH"}:
            await self._app(scope, receive, send)
            return
        try:
            self._check_headers(_headers(scope))
            messages = await self._receive_all(receive)
        except ServiceError as error:
            await _refuse(error, scope, receive, send)
            return

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, replay, send)

    def _check_headers(self, headers: dict[str, str]) -> None:
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_bytes:
            raise self._too_large()
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json" and (length not in {"", "0"} or "transfer-encoding" in headers):
            raise UnsupportedMediaType("Send the body as JSON, with the header Content-Type: application/json.")

    async def _receive_all(self, receive: Receive) -> list[Message]:
        messages: list[Message] = []
        size = 0
        while True:
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            if size > self._max_bytes:
                raise self._too_large()
            if message["type"] != "http.request" or not message.get("more_body", False):
                return messages

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"The body may have at most {self._max_bytes} bytes.")


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


async def _refuse(error: ServiceError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with a problem document and close the connection: the rest of the body is not read."""
    await problem_response(error.to_problem(scope["path"]), {"Connection": "close"})(scope, receive, send)
