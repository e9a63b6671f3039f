"""Serves the app with uvicorn: logging, the announcement on standard output, shutdown. Knows nothing of routes."""

from __future__ import annotations

import gc
import json
import logging
import signal
import sys
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI

_OPEN_REQUESTS_TIMEOUT = 3  # seconds that a shutdown waits for open requests (clients that wait for a job)


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


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT, run the app's shutdown, and return. `port` 0: any free port."""
    server = AnnouncingServer(
        uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=_OPEN_REQUESTS_TIMEOUT)
    )
    # Uvicorn raises the signal again after its shutdown; ignored here, so that the exit status is 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run()


class AnnouncingServer(uvicorn.Server):
    """Prints its address and the command of a first job when it listens."""

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
