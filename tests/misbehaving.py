"""A loopback proxy that fails as networks and busy servers do, and passes other requests on to the real server."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import httpx

RESET, CUT = "reset", "cut"


class Misbehaving:
    """Treats each request as the next entry of `plan` says; passes it on if the plan is empty.

    An entry is `RESET` (reset the connection), `CUT` (reset it after the real server has responded), a response as
    (status, headers), a function that returns one, or None to pass the request on.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.plan: list[object] = []
        self.seen: list[tuple[float, str, str, dict[str, str]]] = []
        self.url = ""

    @property
    def gaps(self):
        """Seconds between requests."""
        times = [each[0] for each in self.seen]
        return [b - a for a, b in pairwise(times)]

    def take(self):
        step = self.plan.pop(0) if self.plan else None
        return step() if callable(step) else step


@contextmanager
def misbehaving(upstream: str) -> Iterator[Misbehaving]:
    state = Misbehaving(upstream)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def _serve(self):
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            state.seen.append((time.monotonic(), self.command, self.path, dict(self.headers)))
            step = state.take()
            if step == RESET:
                return self._reset()
            if isinstance(step, tuple):
                status, headers = step
                return self._answer(status, headers, b"<html>a proxy's page</html>")
            skipped = {"host", "connection", "content-length"}
            headers = {name: value for name, value in self.headers.items() if name.lower() not in skipped}
            answer = httpx.request(
                self.command, state.upstream + self.path, content=content, headers=headers, timeout=60
            )
            if step == CUT:
                return self._reset()
            kept = {"content-type": answer.headers.get("content-type", ""), "X-Passed": "yes"}
            return self._answer(answer.status_code, kept, answer.content)

        def _answer(self, status, headers, content):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _reset(self):
            # With a linger time of 0, closing sends a reset (RST) instead of a FIN.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()

        do_GET = do_POST = do_DELETE = _serve  # noqa: N815 - the library's names

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        state.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
