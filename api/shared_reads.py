"""Reads that several clients ask for at the same time are done once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class SharedReads(Generic[Key, Value]):
    """Calls `read` for a key at most once at a time, however many ask for it. For one event loop.

    Each caller gets the value of a read that began after it asked, so it sees every change that was made before. Those
    who ask while a read runs share the next one. Raises what `read` raises, to each of them.
    """

    def __init__(self, read: Callable[[Key], Awaitable[Value]]) -> None:
        self._read = read
        self._running: dict[Key, asyncio.Future[Value]] = {}
        self._next: dict[Key, asyncio.Future[Value]] = {}

    async def __call__(self, key: Key) -> Value:
        if key not in self._next:
            self._next[key] = asyncio.ensure_future(self._read_next(key, self._running.get(key)))
            # An error that nobody waits for any more needs no line in the log.
            self._next[key].add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(self._next[key])  # one client's disconnection does not end the read of the others

    async def _read_next(self, key: Key, before: asyncio.Future[Value] | None) -> Value:
        if before is not None:
            await asyncio.wait([before])
        future = self._running[key] = self._next.pop(key)
        try:
            return await self._read(key)
        finally:
            if self._running.get(key) is future:
                del self._running[key]
