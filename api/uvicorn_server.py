"""Running the app for people: where it says it listens, how it logs, how it stops. Knows nothing of routes."""

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

_PATIENCE = 3  # seconds that requests still being answered (clients that wait for a job) hold up a shutdown


def configure_logging() -> None:
    """One line of JSON for each event, on standard error."""
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
    """Serve until SIGTERM or SIGINT, with the shutdown that the app's lifespan makes; then return."""
    server = AnnouncingServer(
        uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=_PATIENCE)
    )
    # Uvicorn raises the signal again once it has shut down; by then it is answered, and the exit status is 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run()


class AnnouncingServer(uvicorn.Server):
    """Prints where it listens, and a first job to paste, once it does."""

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if not self.started:
            return
        # What torch and Transformers brought lives as long as the process: the garbage collector, which stops every
        # thread, need not look through it again and again (0.3 s each time).
        gc.collect()
        gc.freeze()
        port = self.servers[0].sockets[0].getsockname()[1]
        body = {
            "model": "lookup-gpt2",
            "method": "input_x_gradient",
            "input_text": "Anna likes tea. Ben likes milk. Anna likes",
            "step_scores": ["probability"],
        }
        print(  # noqa: T201 - for the person who started it
            f"\nServing on http://{self.config.host}:{port}  (interactive documentation at /docs)\n\nA first job:\n\n"
            f"  curl -s http://{self.config.host}:{port}/attribution/jobs -H 'Content-Type: application/json' \\\n"
            f"    -d '{json.dumps(body)}'\n",
            flush=True,
        )
