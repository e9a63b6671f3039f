"""What happens to every request before any route, one concern each: headers, id and failures, host.

Pure ASGI, so that streams pass through unbuffered. Starlette's own host check answers plain text and splits an IPv6
host at its first colon, so the one here is ours.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problem_responses import loggable_path, problem_response
from problems import MalformedRequest, ServiceError, WrongHost

log = structlog.get_logger(__name__)
# Request ids are no secrets. `os.urandom` would release the interpreter's lock, for which the event loop then waits.
_ids = random.Random()  # noqa: S311

SECURITY_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
# A browser runs and loads nothing from a response of the API; a response that is a page sets a policy of its own.
_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
_UNINDEXED = (b"x-robots-tag", b"noindex, nofollow")
# Two of them could be read differently by a proxy and by this server.
_GIVEN_ONCE = (b"host", b"authorization", b"content-type", b"content-encoding")


class SecurityHeadersMiddleware:
    """Adds security headers to every response, a Content-Security-Policy to those without one, and to all under
    `/shared` that search engines must not index them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", []))
                has_policy = any(name.lower() == _POLICY[0] for name, _ in headers)
                unindexed = [_UNINDEXED] if scope["path"].startswith("/shared/") else []
                message["headers"] = [*headers, *SECURITY_HEADERS, *([] if has_policy else [_POLICY]), *unindexed]
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
                log.exception("request_failed", path=loggable_path(scope["path"]))
                if started:
                    raise
                failure = ServiceError(
                    "The server failed unexpectedly; its log has the reason under this X-Request-ID."
                )
                await problem_response(failure.to_problem(scope["path"]))(scope, receive, send_with_id)


class HostCheckMiddleware:
    """Refuses a request whose Host header names another host (DNS rebinding). `*` in `allowed_hosts` allows any.

    Refuses repeated headers of which only one can count, Host among them (RFC 9112, section 3.2).
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Sequence[str]) -> None:
        self._app = app
        self._allowed_hosts = frozenset(allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            names = [name.lower() for name, _ in scope["headers"]]
            if repeated := next((name for name in _GIVEN_ONCE if names.count(name) > 1), None):
                error: ServiceError = MalformedRequest(f"The header {repeated.decode().title()} is given twice.")
                await refuse(error, scope, receive, send)
                return
            header = headers_of(scope).get("host", "")
            host = header[: header.rindex(":")] if re.search(r":\d+$", header) else header
            if "*" not in self._allowed_hosts and host.lower() not in self._allowed_hosts:
                error = WrongHost(
                    f"This server does not answer to the host {host!r}. The operator can add it to "
                    "INSEQ_API_ALLOWED_HOSTS."
                )
                await refuse(error, scope, receive, send)
                return
        await self._app(scope, receive, send)


def headers_of(scope: Scope) -> dict[str, str]:
    """Return the request's headers by their names in lower case."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


async def refuse(error: ServiceError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with a problem document. The connection discards the rest of the body."""
    await problem_response(error.to_problem(scope["path"]), error.headers)(scope, receive, send)
