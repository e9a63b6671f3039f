"""Clients that wait for a job to end: each is a future on the event loop, and costs no thread."""

from __future__ import annotations

import asyncio
from collections import defaultdict


class EndOfJobs:
    """Wakes whoever waits for a job, when it ends."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: defaultdict[str, set[asyncio.Future[None]]] = defaultdict(set)

    def tell(self, job_id: str) -> None:
        """The job has ended; called from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake, job_id)

    def expect(self, job_id: str) -> asyncio.Future[None]:
        """A future that is done when the job ends. Ask for its status after this, not before: it may end between."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting[job_id].add(future)
        future.add_done_callback(lambda done: self._forget(job_id, done))
        return future

    def _wake(self, job_id: str) -> None:
        for future in list(self._waiting.get(job_id, ())):
            if not future.done():
                future.set_result(None)

    def _forget(self, job_id: str, future: asyncio.Future[None]) -> None:
        self._waiting[job_id].discard(future)
        if not self._waiting[job_id]:
            del self._waiting[job_id]
