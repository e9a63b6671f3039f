"""Who is notified when jobs change or end. Knows nothing of what the listeners do."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.store.records import JobRecord
from models import JobStatus


class JobListener:
    """Base class: override what you need. Methods are called on whichever thread changed the job, and must be quick."""

    def job_changed(self, job_id: str) -> None:
        """Note that the status or the progress of the job changed."""

    def job_ended(self, job: JobRecord, status: JobStatus, seconds: float) -> None:
        """Note that a job that ran reached a terminal status after this many seconds of running."""


class JobListeners(JobListener):
    """Several listeners as one, notified in order."""

    def __init__(self, listeners: Sequence[JobListener]) -> None:
        self._listeners = tuple(listeners)

    def job_changed(self, job_id: str) -> None:
        """Notify each listener."""
        for listener in self._listeners:
            listener.job_changed(job_id)

    def job_ended(self, job: JobRecord, status: JobStatus, seconds: float) -> None:
        """Notify each listener."""
        for listener in self._listeners:
            listener.job_ended(job, status, seconds)
