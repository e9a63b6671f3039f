"""Threads for work that may take long, bounded apart from those of polls, lists and health checks.

A view of a large result or an estimate of a long text takes seconds of Python. On the threads that FastAPI shares among
all routes, forty of them would delay every other request.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Request

from problems import RequestTimedOut

Result = TypeVar("Result")


class WorkThreads:
    """Runs functions on threads, at most `at_once` at the same time; further requests wait without a thread."""

    def __init__(self, at_once: int) -> None:
        self._turns = CapacityLimiter(at_once)
        self._threads = CapacityLimiter(math.inf)

    async def run(self, request: Request, work: Callable[[], Result]) -> Result:
        """Return what `work` returns. Raises what it raises, and `RequestTimedOut` if the client has gone meanwhile."""
        async with self._turns:
            if await request.is_disconnected():
                raise RequestTimedOut("The client closed the connection.")  # nobody reads it
            return await to_thread.run_sync(work, limiter=self._threads)
