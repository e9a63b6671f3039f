"""Gives freed memory back to the operating system after large requests and responses.

The C library keeps freed blocks below others that are in use: after some megabytes of bodies and results, a process
stays as large as it once was. `malloc_trim` of glibc gives their pages back, in milliseconds, without the interpreter's
lock.
"""

from __future__ import annotations

import asyncio
import ctypes

import psutil

_GROWTH = 32 * 1024**2  # bytes


class FreedMemory:
    """Trims the heap of this process whenever it has grown. Does nothing where the C library is another than glibc."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._least = self._process.memory_info().rss

    async def give_back(self) -> None:
        """Trim if the process has grown by more than 32 MB since it was smallest after trimming."""
        if self._trim is None or self._process.memory_info().rss < self._least + _GROWTH:
            return
        await asyncio.to_thread(self._trim, 0)
        self._least = self._process.memory_info().rss
