"""HTTP/1.1 connections with bounds on size, time and number, which uvicorn's protocol does not have.

Uvicorn's httptools protocol parses fast and has no limits: a header may grow without end, at a cost that grows with
its square, and a silent connection stays open for ever. Its h11 protocol limits the size of headers, but 240 KB of
chunks of one byte keep the event loop busy for half a second (httptools: 5 ms). So this is the httptools protocol with
limits.

Every second, `AnnouncingServer` has each connection check whether it has made progress.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from api.middleware import SECURITY_HEADERS
from api.problem_responses import problem_response
from problems import HeadersTooLarge, MalformedRequest, RequestTimedOut, ServerBusy, ServiceError

_HEADER_BYTES = 64 * 1024  # of the request line and all headers; also of the trailers, and of one chunk's extensions
_HEADER_COUNT = 200
_CHUNKS = 1000  # of a body; more must have on average
_CHUNK_BYTES = 64
_PIPELINED = 16  # requests that wait on one connection for the responses before theirs
_PROGRESS_BYTES = 1024  # a body that gets fewer within the stall time makes no progress
_LINGER = 2.0  # seconds for which a refused client may go on sending, so that it reads the refusal before a reset
_UNSENT_BYTES = 128 * 1024  # of a response, in the operating system's buffer


@dataclass(frozen=True)
class ConnectionLimits:
    """connections: how many may be open. header_seconds: from a request's first byte to the end of its headers.

    stall_seconds: without progress of a body that is received or of a response that is read. discarded_bytes: of a
    body whose request is answered already. on_refusal: is called with the slug of each problem sent here.
    """

    connections: int
    header_seconds: float
    stall_seconds: float
    discarded_bytes: int
    on_refusal: Callable[[str], None]


class BoundedProtocol(HttpToolsProtocol):
    """One connection. `with_limits` makes the class that a server uses."""

    limits: ClassVar[ConnectionLimits]
    waiting: ClassVar[dict[BoundedProtocol, None]]  # the connections without a request, the longest waiting first

    @classmethod
    def with_limits(cls, limits: ConnectionLimits) -> type[BoundedProtocol]:
        """Return a subclass for the connections of one server."""
        return type(cls.__name__, (cls,), {"limits": limits, "waiting": {}})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._answering: RequestResponseCycle | None = None  # of pipelined requests, `cycle` is the last received
        self._in_headers = True
        self._header_bytes = self._header_count = 0
        self._unparsed = 0  # bytes received since the parser last completed headers, a chunk header or a piece of body
        self._chunks = self._received = 0  # of this request's body
        self._body_bytes = 0  # of them, those since the last progress
        self._discarded = 0
        self._refusal: ServiceError | None = None
        self._ignores_input = False
        self._progress_at = 0.0  # of what is received
        self._unsent, self._unsent_at = 0, 0.0  # of what is sent

    # Connecting

    def connection_made(self, transport: Any) -> None:
        """Close the connection that waits longest if there are too many; refuse this one if none waits."""
        super().connection_made(transport)
        _bound_buffers(transport.get_extra_info("socket"), self.limits.stall_seconds)
        self._wait()
        if len(self.connections) > self.limits.connections:
            oldest = next(iter(self.waiting))
            if oldest is self:
                self._refuse(ServerBusy("The server has no connection left. Try again later.", headers=_RETRY))
                self.transport.close()
            else:
                oldest.abandon()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell every request of this connection, and release what it received."""
        self.waiting.pop(self, None)
        self._disconnect()
        super().connection_lost(exc)

    def abandon(self) -> None:
        """Close the connection without another byte."""
        self._ignores_input = True
        self.waiting.pop(self, None)
        self.connections.discard(self)
        self._disconnect()
        self.transport.abort()

    def _disconnect(self) -> None:
        self.pipeline.clear()
        for cycle in (self._answering, self.cycle):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.body = bytearray()
                cycle.message_event.set()

    # Receiving

    def data_received(self, data: bytes) -> None:
        """Parse, and refuse what cannot be parsed or never ends."""
        if self._ignores_input:
            self._discard(len(data))
            return
        self._unset_keepalive_if_required()
        self._unparsed += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # the request is answered as if it had not asked, the connection closes
            self._ignores_input = True
            self.cycle.keep_alive = False
        except httptools.HttpParserError:
            self._refuse(
                self._refusal or MalformedRequest("This is no request of HTTP/1.1: the server cannot parse it.")
            )
        else:
            if self._unparsed > _HEADER_BYTES:
                self._refuse(_headers_too_large())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = True
        self._header_bytes = self._header_count = 0
        self._progress_at = self.loop.time()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count_header(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_count += 1
        self._count_header(len(name) + len(value) + 4)
        if self._in_headers:  # a trailer must not pass for a header that was checked before
            super().on_header(name, value)

    def _count_header(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > _HEADER_BYTES or self._header_count > _HEADER_COUNT:
            self._stop_parsing(_headers_too_large())

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= _PIPELINED:
            self._stop_parsing(MalformedRequest(f"At most {_PIPELINED} pipelined requests may wait for a response."))
        self._in_headers = False
        self._header_bytes = self._header_count = self._unparsed = self._body_bytes = 0
        self._chunks = self._received = self._discarded = 0
        self.waiting.pop(self, None)
        self._progress_at = self.loop.time()
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """Refuse a body in tiny chunks, which takes the parser as long as one of many times its size."""
        self._unparsed = 0
        self._chunks += 1
        if self._chunks > _CHUNKS and self._received < self._chunks * _CHUNK_BYTES:
            self._stop_parsing(MalformedRequest(f"More than {_CHUNKS} chunks must have {_CHUNK_BYTES} bytes or more."))

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        self._received += len(body)
        self._body_bytes += len(body)
        if self._body_bytes >= _PROGRESS_BYTES:
            self._body_bytes, self._progress_at = 0, self.loop.time()
        if self.cycle.response_complete:
            self._discard(len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unparsed = 0
        super().on_message_complete()
        if self.cycle.response_complete:
            self.cycle.more_body = False
            self._wait()

    def _discard(self, size: int) -> None:
        """Count what is received and not used. Its client gets so much time to read the answer, and no more."""
        self._discarded += size
        if self._discarded > self.limits.discarded_bytes:
            self.abandon()

    def _stop_parsing(self, error: ServiceError) -> None:
        """Make the parser raise `HttpParserError`, for which `data_received` refuses the request with this error."""
        self._refusal = error
        raise error

    # Answering

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete and not self.cycle.more_body:
            self._wait()
        else:
            self._progress_at = self.loop.time()

    def _wait(self) -> None:
        """Wait for a request."""
        self._progress_at = self.loop.time()
        self.waiting[self] = None

    def _refuse(self, error: ServiceError) -> None:
        """Read no more requests. Answer the unfinished one with a problem; a complete one gets its own answer first."""
        self._ignores_input = True
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body:
                cycle.keep_alive = False
                return
            is_answerable = self._answering is cycle and not cycle.response_started
            self._disconnect()
            if not is_answerable:
                self.transport.close()
                return
        elif cycle is not None and cycle.more_body:  # the rest of a body whose request was answered
            self.transport.close()
            return
        self._discarded = 0
        self.limits.on_refusal(error.slug)
        self.transport.write(_written(error))
        self.transport.write_eof()
        self._wait()

    # Progress

    def drop_if_stalled(self, now: float) -> None:
        """Drop the connection if neither side has made progress for too long. `now`: the event loop's time."""
        if self._is_unread(now):
            self.abandon()
        elif self in self.waiting:
            if self._ignores_input:
                if now - self._progress_at > _LINGER:
                    self.transport.close()
            elif now - self._progress_at > self.limits.header_seconds:
                if self._unparsed:
                    self._refuse(RequestTimedOut(f"The headers must arrive in {self.limits.header_seconds:g} seconds."))
                else:
                    self.transport.close()
        elif self._is_receiving and now - self._progress_at > self.limits.stall_seconds:
            seconds = f"{self.limits.stall_seconds:g} seconds"
            self._refuse(RequestTimedOut(f"The body made no progress for {seconds}. Send it again."))

    @property
    def _is_receiving(self) -> bool:
        """Whether it is the client's turn to send more of a body."""
        return self.cycle is not None and self.cycle.more_body and not self.flow.read_paused

    def _is_unread(self, now: float) -> bool:
        """Return whether the client has read nothing of what waits to be sent for the stall time.

        While writing is paused, and after closing, nothing is added to what waits, so that any progress makes it less.
        """
        unsent = self.transport.get_write_buffer_size()
        if not unsent or unsent != self._unsent or not (self.flow.write_paused or self.transport.is_closing()):
            self._unsent, self._unsent_at = unsent, now
        return now - self._unsent_at > self.limits.stall_seconds


_RETRY = {"Retry-After": "1"}


def _headers_too_large() -> HeadersTooLarge:
    return HeadersTooLarge(
        f"A request may have {_HEADER_COUNT} headers, of {_HEADER_BYTES} bytes together with its URL."
    )


def _written(error: ServiceError) -> bytes:
    """Return a whole response."""
    response = problem_response(error.to_problem(), {**error.headers, "Connection": "close"})
    headers = [*response.raw_headers, *SECURITY_HEADERS]
    phrase = HTTPStatus(error.status).phrase
    status = f"HTTP/1.1 {int(error.status)} {phrase}\r\n".encode()
    return status + b"".join(b"%b: %b\r\n" % header for header in headers) + b"\r\n" + bytes(response.body)


def _bound_buffers(connection: socket.socket, stall_seconds: float) -> None:
    """Have the operating system keep little of a response that is not read, and drop a client that is gone."""
    options = {"TCP_NOTSENT_LOWAT": _UNSENT_BYTES, "TCP_USER_TIMEOUT": int(stall_seconds * 1000)}
    for name, value in options.items():
        if option := getattr(socket, name, None):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
