"""Progress of running jobs: kept in memory, sent to listeners at most five times a second, stored once a second."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from jobs.listeners import JobListener
from jobs.periodic import Periodic
from jobs.running_jobs import RunningJobs
from jobs.store.job_store import JobStore
from models import Progress, Stage
from problems import StorageFailed

log = structlog.get_logger(__name__)

_STORE_INTERVAL = 1.0  # seconds between two writes of progress to the store
_NOTIFY_INTERVAL = 0.2  # seconds between two notifications about one job, unless its stage changes


class ProgressReporter:
    """Takes the progress reports of one job. A new stage is sent to the listener at once."""

    def __init__(self, job_id: str, running: RunningJobs, listener: JobListener, clock: Callable[[], float]) -> None:
        self._job_id, self._running, self._listener, self._clock = job_id, running, listener, clock
        self._stage: Stage | None = None
        self._notified_at = 0.0

    def __call__(self, progress: Progress) -> None:
        self._running.report(self._job_id, progress)
        now = self._clock()
        if progress.stage is not self._stage or now - self._notified_at >= _NOTIFY_INTERVAL:
            self._stage, self._notified_at = progress.stage, now
            self._listener.job_changed(self._job_id)


class ProgressWriter(Periodic):
    """Writes changed progress of all running jobs to the store once a second, so that no job waits for the disk."""

    def __init__(self, store: JobStore, running: RunningJobs) -> None:
        self._store = store
        self._running = running
        self._written: dict[str, Progress] = {}
        super().__init__("progress", _STORE_INTERVAL, self._write)

    def _write(self) -> None:
        entries = self._running.all()
        changed = [
            (entry.job, entry.stored_progress)
            for entry in entries
            if self._written.get(entry.job.job_id, Progress()) != entry.stored_progress
        ]
        try:
            if changed:
                self._store.save_progress(changed)
        except StorageFailed as error:
            log.warning("progress_not_stored", error=error.detail)
            return
        self._written = {entry.job.job_id: entry.stored_progress for entry in entries}
