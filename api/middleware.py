"""What happens to every request before any route: it gets an id, and is refused if it is too large or misdirected."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problem_responses import problem_response
from problems import BodyTooLarge, ServiceError, UnsupportedMediaType, WrongHost

log = structlog.get_logger(__name__)
# Ids of requests are no secrets; asking the system for each would have the event loop wait for the interpreter's lock.
_ids = random.Random()  # noqa: S311

# Nothing that the API answers is to run or load anything in a browser; an answer that is a page has its own policy.
_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")


class RequestIdMiddleware:
    """Gives every request an id, in the log and in the answer (`X-Request-ID`), even when the app fails."""

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
                headers = list(message.get("headers", []))
                has_policy = any(name.lower() == _POLICY[0] for name, _ in headers)
                message["headers"] = [
                    *headers,
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                    *([] if has_policy else [_POLICY]),
                ]
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


class RequestGuard:
    """Refuses a request for another host (DNS rebinding), and a body that is no JSON or too large, while it is read."""

    def __init__(self, app: ASGIApp, max_bytes: int, allowed_hosts: Sequence[str]) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._allowed_hosts = frozenset(allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        messages: list[Message] = []
        try:
            self._check_host(headers.get("host", ""))
            if scope["method"] in {"POST", "PUT", "PATCH"}:
                self._check_headers(headers)
                messages = await self._read(receive)
        except ServiceError as error:
            response = problem_response(error.to_problem(scope["path"]), {"Connection": "close"})
            await response(scope, receive, send)
            return

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, replay, send)

    def _check_host(self, header: str) -> None:
        host = header[: header.rindex(":")] if re.search(r":\d+$", header) else header
        if "*" not in self._allowed_hosts and host.lower() not in self._allowed_hosts:
            raise WrongHost(
                f"This server does not answer to the host {host!r}. The operator can add it to INSEQ_API_ALLOWED_HOSTS."
            )

    def _check_headers(self, headers: dict[str, str]) -> None:
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_bytes:
            raise self._too_large()
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json" and (length not in {"", "0"} or "transfer-encoding" in headers):
            raise UnsupportedMediaType("Send the body as JSON, with the header Content-Type: application/json.")

    async def _read(self, receive: Receive) -> list[Message]:
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
