"""Serves the app with uvicorn: logging, the announcement on standard output, shutdown. Knows nothing of routes."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import resource
import signal
import sys
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI

from api.bounded_protocol import BoundedProtocol, ConnectionLimits
from settings import Settings

log = structlog.get_logger(__name__)
_OPEN_REQUESTS_TIMEOUT = 3  # seconds that a shutdown waits for open requests (clients that wait for a job)
_OTHER_DESCRIPTORS = 256  # files that are no connections: SQLite, results, models, clients that were not accepted yet
_BACKLOG = 128  # connections that wait to be accepted
_TICKS_PER_SECOND = 10  # of uvicorn


def configure_logging() -> None:
    """Log each event as one line of JSON on standard error."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def serve(app: FastAPI, settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, run the app's shutdown, and return. Port 0: any free port."""
    limits = ConnectionLimits(
        connections=_affordable(settings.max_connections),
        header_seconds=settings.header_timeout_seconds,
        stall_seconds=settings.stall_timeout_seconds,
        discarded_bytes=4 * settings.max_body_bytes,
        on_refusal=app.state.http_metrics.connection_refused,
    )
    server = AnnouncingServer(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=BoundedProtocol.with_limits(limits),
            ws="none",
            backlog=_BACKLOG,
            log_level="warning",
            timeout_graceful_shutdown=_OPEN_REQUESTS_TIMEOUT,
        )
    )
    # Uvicorn raises the signal again after its shutdown; ignored here, so that the exit status is 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run()


def _affordable(connections: int) -> int:
    """Return how many connections leave descriptors for the rest. Raises the soft limit first."""
    wanted = connections + _OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    affordable = max(soft - _OTHER_DESCRIPTORS, soft // 2)
    log.warning("connections_limited", connections=affordable, wanted=connections, descriptors=soft)
    return affordable


class AnnouncingServer(uvicorn.Server):
    """Prints its address and the command of a first job when it listens; drops connections that stall."""

    async def on_tick(self, counter: int) -> bool:
        if counter % _TICKS_PER_SECOND == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, BoundedProtocol):
                    connection.drop_if_stalled(now)
        return await super().on_tick(counter)

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if not self.started:
            return
        # Objects of torch and Transformers live as long as the process. Frozen, the garbage collector skips them; a
        # full collection of them would stop all threads for 0.3 s.
        gc.collect()
        gc.freeze()
        port = self.servers[0].sockets[0].getsockname()[1]
        body = {
            "model": "lookup-gpt2",
            "method": "input_x_gradient",
            "input_text": "Anna likes tea. Ben likes milk. Anna likes",
            "step_scores": ["probability"],
        }
        print(  # noqa: T201 - for whoever started the server
            f"\nServing on http://{self.config.host}:{port}  (interactive documentation at /docs)\n\nA first job:\n\n"
            f"  curl -s http://{self.config.host}:{port}/attribution/jobs -H 'Content-Type: application/json' \\\n"
            f"    -d '{json.dumps(body)}'\n",
            flush=True,
        )
