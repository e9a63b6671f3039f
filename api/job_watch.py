"""Clients that wait for a job or watch it: each is a coroutine on the event loop and costs no thread.

Workers notify about a change from their threads. The job's document is then read and written as JSON once, however many
clients watch it; a slow client gets the latest document only, not those that it missed.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from api.shared_reads import SharedReads
from jobs.listeners import JobListener
from jobs.store.records import ALL_OWNERS, OwnerFilter
from models import Job
from problems import Unauthorized

_KEEPALIVE = 15.0  # seconds of silence after which a comment is sent, because proxies cut silent connections
_KEY_CHECK = 2.0  # seconds after which the key of a waiting client is checked again
_RETRY = 2000  # milliseconds after which a client should reconnect


MayContinue = Callable[[], bool]  # whether the client's key is still valid; takes microseconds


class JobWatch(JobListener):
    """Sends a job's document to the clients that watch it whenever it changes.

    loop: the event loop of the clients. read: returns the document of a job id, if this owner may see it, without
    blocking the loop, or raises `JobNotFound`.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, read: Callable[[tuple[str, OwnerFilter]], Awaitable[Job]]
    ) -> None:
        async def document(key: tuple[str, OwnerFilter]) -> _Document:
            return _Document(await read(key))

        self._loop = loop
        self._read = SharedReads(document)
        self._watchers: defaultdict[str, set[_Watcher]] = defaultdict(set)
        self._sending: dict[str, asyncio.Task[None]] = {}
        self._changed: set[str] = set()

    def job_changed(self, job_id: str) -> None:
        """Have the job's watchers get its new document. May be called from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._start_sending, job_id)

    async def job(self, job_id: str, owner: OwnerFilter) -> Job:
        """Return the job as it is now. Raises `JobNotFound`, also for a job of another owner."""
        return (await self._read((job_id, owner))).job

    async def wait_for_end(self, job_id: str, seconds: float, may_continue: MayContinue) -> Job:
        """Return the job when it has ended, or as it is after `seconds`. Raises `JobNotFound`, and `Unauthorized` when
        the client may not continue.
        """
        watcher = self._add_watcher(job_id)
        try:
            job = await self.job(job_id, ALL_OWNERS)
            deadline = self._loop.time() + seconds
            while not job.status.is_terminal and (left := deadline - self._loop.time()) > 0:
                changed = await watcher.next(min(left, _KEY_CHECK))
                job = changed.job if changed else job
                if not may_continue():
                    raise Unauthorized("The API key was revoked.", headers={"WWW-Authenticate": "Bearer"})
        finally:
            self._remove_watcher(job_id, watcher)
        return job

    async def stream(self, job_id: str, last_event_id: str | None, may_continue: MayContinue) -> AsyncIterator[bytes]:
        """Yield server-sent events: the job now, unless the client has that event, then each change to its end.

        Ends without an event when the client may not continue; it is told why when it reconnects.
        """
        watcher = self._add_watcher(job_id)
        try:
            yield format_sse_event(retry=_RETRY)
            document, seen, status = await self._read((job_id, ALL_OWNERS)), last_event_id, None
            while True:
                job = document.job
                if event_id(job) != seen:
                    seen = event_id(job)
                    yield document.event("progress" if job.status is status else "status")
                    status = job.status
                if job.status.is_terminal:
                    return
                silent_until = self._loop.time() + _KEEPALIVE
                while (changed := await watcher.next(_KEY_CHECK)) is None and self._loop.time() < silent_until:
                    if not may_continue():
                        return
                if not may_continue():
                    return
                if changed is None:
                    yield KEEPALIVE_COMMENT
                document = changed or document
        finally:
            self._remove_watcher(job_id, watcher)

    @property
    def watchers(self) -> int:
        """The number of clients that wait or watch."""
        return sum(len(each) for each in self._watchers.values())

    def _add_watcher(self, job_id: str) -> _Watcher:
        watcher = _Watcher()
        self._watchers[job_id].add(watcher)
        return watcher

    def _remove_watcher(self, job_id: str, watcher: _Watcher) -> None:
        self._watchers[job_id].discard(watcher)
        if not self._watchers[job_id]:
            del self._watchers[job_id]

    def _start_sending(self, job_id: str) -> None:
        if job_id not in self._watchers:
            return
        self._changed.add(job_id)
        if job_id not in self._sending:
            self._sending[job_id] = self._loop.create_task(self._send_to_watchers(job_id))

    async def _send_to_watchers(self, job_id: str) -> None:
        try:
            while job_id in self._changed:
                self._changed.discard(job_id)
                document = await self._read((job_id, ALL_OWNERS))
                for watcher in list(self._watchers.get(job_id, ())):
                    watcher.put(document)
        finally:
            del self._sending[job_id]


class _Document:
    """A job's document, and the events that carry it, written once: a request may have megabytes."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._events: dict[str, bytes] = {}

    def event(self, name: str) -> bytes:
        """Return the server-sent event of this name with the document."""
        if name not in self._events:
            self._events[name] = format_sse_event(
                data_str=self.job.model_dump_json(), event=name, id=event_id(self.job)
            )
        return self._events[name]


class _Watcher:
    """One client's mailbox: it holds the latest document only."""

    def __init__(self) -> None:
        self._latest: _Document | None = None
        self._arrived = asyncio.Event()

    def put(self, document: _Document) -> None:
        self._latest = document
        self._arrived.set()

    async def next(self, seconds: float) -> _Document | None:
        """Return the next document, or None if none comes in this time."""
        try:
            async with asyncio.timeout(seconds):
                await self._arrived.wait()
        except TimeoutError:
            return None
        self._arrived.clear()
        return self._latest


def event_id(job: Job) -> str:
    """Return the id of the event that carries this document: equal for equal states, also after a server restart."""
    progress = job.progress
    place = f"{progress.stage}-{progress.method or ''}-{progress.steps_done}-{progress.fraction:.4f}"
    written = sum(map(len, progress.generated_text or ()))
    told = zlib.crc32(json.dumps([job.name, job.notes, sorted(job.tags.items())]).encode())
    return f"{job.status}-{job.attempt}-{place}-{written}-{int(job.cancel_requested)}-{told:08x}"
