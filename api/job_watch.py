"""Clients that watch a job: each is a future or a stream on the event loop, and costs no thread.

A job's change is told once from any thread; its document is read once, however many watch, and the latest one replaces
those that a slow client has not yet taken.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from models import Job

_KEEPALIVE = 15.0  # seconds of silence after which proxies might cut a stream
_RETRY = 2000  # milliseconds after which a client may connect again


class JobWatch:
    """Wakes whoever watches a job, when it changes. `read` gives a job's document, off the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, read: Callable[[str], Awaitable[Job]]) -> None:
        self._loop = loop
        self._read = read
        self._watchers: defaultdict[str, set[_Watcher]] = defaultdict(set)
        self._reading: dict[str, asyncio.Task[None]] = {}
        self._changed: set[str] = set()

    def tell(self, job_id: str) -> None:
        """The job has changed; called from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._note, job_id)

    async def ended(self, job_id: str, patience: float) -> Job:
        """The job, once it has ended or the time is up. Raises `JobNotFound`."""
        watcher = self._watch(job_id)
        try:
            job = await self._read(job_id)
            async with asyncio.timeout(patience):
                while not job.status.is_terminal:
                    job = await watcher.next()
        except TimeoutError:
            pass
        finally:
            self._forget(job_id, watcher)
        return job

    async def stream(self, job_id: str, last_event_id: str | None) -> AsyncIterator[bytes]:
        """Server-sent events: the job as it is (unless the client has seen just that), then every change to its end."""
        watcher = self._watch(job_id)
        try:
            yield format_sse_event(retry=_RETRY)
            job, seen, status = await self._read(job_id), last_event_id, None
            while True:
                if event_id(job) != seen:
                    seen = event_id(job)
                    event = "progress" if job.status is status else "status"
                    status = job.status
                    yield format_sse_event(data_str=job.model_dump_json(), event=event, id=seen)
                if job.status.is_terminal:
                    return
                try:
                    async with asyncio.timeout(_KEEPALIVE):
                        job = await watcher.next()
                except TimeoutError:
                    yield KEEPALIVE_COMMENT
        finally:
            self._forget(job_id, watcher)

    @property
    def watched(self) -> int:
        """How many watch."""
        return sum(len(each) for each in self._watchers.values())

    def _watch(self, job_id: str) -> _Watcher:
        watcher = _Watcher()
        self._watchers[job_id].add(watcher)
        return watcher

    def _forget(self, job_id: str, watcher: _Watcher) -> None:
        self._watchers[job_id].discard(watcher)
        if not self._watchers[job_id]:
            del self._watchers[job_id]

    def _note(self, job_id: str) -> None:
        if job_id not in self._watchers:
            return
        self._changed.add(job_id)
        if job_id not in self._reading:
            self._reading[job_id] = self._loop.create_task(self._tell_watchers(job_id))

    async def _tell_watchers(self, job_id: str) -> None:
        try:
            while job_id in self._changed:
                self._changed.discard(job_id)
                job = await self._read(job_id)
                for watcher in list(self._watchers.get(job_id, ())):
                    watcher.put(job)
        finally:
            del self._reading[job_id]


class _Watcher:
    """One client's place: the latest document that it has not taken yet."""

    def __init__(self) -> None:
        self._latest: Job | None = None
        self._arrived = asyncio.Event()

    def put(self, job: Job) -> None:
        self._latest = job
        self._arrived.set()

    async def next(self) -> Job:
        await self._arrived.wait()
        self._arrived.clear()
        assert self._latest is not None
        return self._latest


def event_id(job: Job) -> str:
    """What a client has seen: the same for the same state, also after the server's restart."""
    progress = job.progress
    return f"{job.status}-{job.attempt}-{progress.stage}-{progress.steps_done}-{int(job.cancel_requested)}"
