"""Gives freed memory back to the operating system after large requests, responses and jobs.

The C library keeps freed blocks below others that are in use: after some megabytes of bodies and results, or a job's
tensors, a process stays as large as it once was. `malloc_trim` of glibc gives their pages back, in milliseconds,
without the interpreter's lock.
"""

from __future__ import annotations

import ctypes
import time

import psutil

from jobs.listeners import JobListener
from jobs.periodic import Periodic
from jobs.store.records import JobRecord
from models import JobStatus

_INTERVAL = 5.0  # seconds; more often, jobs would have to ask for the same pages again and again
_GROWTH = 32 * 1024**2  # bytes
_LONGEST = 30.0  # seconds between two trims: what was in use at the last one may be free by now


class FreedMemory(Periodic, JobListener):
    """Trims the heap of this process when a job has ended, when it has grown by 32 MB, and at least every 30 seconds.

    Does nothing where the C library is another than glibc.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._after_last = 0  # bytes
        self._last = 0.0  # monotonic seconds
        self._has_job_ended = False
        super().__init__("freed-memory", _INTERVAL, self.give_back)

    def job_ended(self, job: JobRecord, status: JobStatus, seconds: float) -> None:  # noqa: ARG002
        """Trim at the next call: by then the job's tensors are free."""
        self._has_job_ended = True

    def give_back(self) -> None:
        """Trim if one of the reasons has come up. Called every 5 seconds between `start` and `stop`."""
        if self._trim is None or not self._is_due():
            return
        self._has_job_ended = False
        self._trim(0)
        self._last, self._after_last = time.monotonic(), self._process.memory_info().rss

    def _is_due(self) -> bool:
        has_grown = self._process.memory_info().rss >= self._after_last + _GROWTH
        return self._has_job_ended or has_grown or time.monotonic() >= self._last + _LONGEST
