"""The state of running jobs, shared by the manager and the workers of this process. Knows no store and no HTTP.

Contract: every method takes one lock, holds it for a few dictionary operations and some arithmetic, and waits for
nothing meanwhile, so it may be called from any thread, also between two forward passes of a model. An entry is created,
updated and removed only by the worker that runs the job; the manager reads entries and writes cancel requests. Entries
are immutable, so a reader keeps a consistent one. A cancel request may precede its entry (the job is just being
claimed) and is removed with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from jobs.eta import RunningEta
from jobs.run import EncodePartial
from jobs.store.records import JobRecord
from models import Progress


@dataclass(frozen=True)
class RunningJob:
    """One running job at its latest report. `progress` is the engine's; its `eta_seconds` comes from `eta`."""

    job: JobRecord
    device: str
    eta: RunningEta
    progress: Progress = Progress()  # noqa: RUF009 - frozen
    encode_partial: EncodePartial | None = None

    @property
    def stored_progress(self) -> Progress:
        """The progress as it is stored: without the texts, which the result has, and which grow with every token."""
        return self.progress.model_copy(update={"generated_text": None})


class RunningJobs:
    """The running jobs by their ids, and which of them are to be cancelled."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[str, RunningJob] = {}
        self._cancelled: set[str] = set()

    # For the worker that runs the job

    def add(self, job: JobRecord, device: str) -> None:
        """Create the entry of a job that was just claimed."""
        entry = RunningJob(job, device, RunningEta.of_new(job.kind, self._clock()))
        with self._lock:
            self._entries[job.job_id] = entry

    def report(self, job_id: str, progress: Progress) -> None:
        """Store the latest progress, and the ETA that follows from it."""
        with self._lock:
            entry = self._entries[job_id]
            eta = entry.eta.updated(progress, self._clock())
            progress = progress.model_copy(update={"eta_seconds": eta.seconds_left})
            self._entries[job_id] = replace(entry, progress=progress, eta=eta)

    def offer_partial(self, job_id: str, encode: EncodePartial) -> None:
        """Store the function that encodes the unfinished result."""
        with self._lock:
            self._entries[job_id] = replace(self._entries[job_id], encode_partial=encode)

    def remove(self, job_id: str) -> None:
        """Remove the entry and the cancel request of a job that runs no longer."""
        with self._lock:
            self._entries.pop(job_id, None)
            self._cancelled.discard(job_id)

    # For everyone

    def get(self, job_id: str) -> RunningJob | None:
        """Return the entry of a running job, or None."""
        with self._lock:
            return self._entries.get(job_id)

    def all(self) -> list[RunningJob]:
        """Return the entries of all running jobs."""
        with self._lock:
            return list(self._entries.values())

    def models_on(self, device: str) -> tuple[str, ...]:
        """Return the names of the models that jobs run on this device now."""
        return tuple(entry.job.model for entry in self.all() if entry.device == device)

    # Cancelling

    def request_cancel(self, job_id: str) -> None:
        """Ask the worker of a job to stop it."""
        with self._lock:
            self._cancelled.add(job_id)

    def withdraw_cancel(self, job_id: str) -> None:
        """Remove a cancel request: the job was not running."""
        with self._lock:
            self._cancelled.discard(job_id)

    def is_cancel_requested(self, job_id: str) -> bool:
        """Whether the job is to be stopped."""
        with self._lock:
            return job_id in self._cancelled
