"""JobManager: accepts, cancels, deletes and recovers jobs, and answers questions about them.

Jobs run on the worker threads of `jobs.workers`. Knows no torch and no HTTP: what computes a job is one callable
(`jobs.run.Run`), which `create_app` passes in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import structlog

from jobs.eta import EtaEstimator
from jobs.listeners import JobListener, JobListeners
from jobs.progress import ProgressWriter
from jobs.run import Run
from jobs.running_jobs import RunningJobs
from jobs.store.job_store import JobStore
from jobs.store.listing import Filters
from jobs.store.records import JobRecord, OwnerFilter, Submission
from jobs.workers import WorkerPool, encoded_partial, interrupted
from models import AttributionRequest, JobFacets, JobStatus, JobUpdate, ResultPart
from problems import JobActive, JobEnded, JobNotFound, QueueFull, ServiceError, ShuttingDown

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class JobLimits:
    """Limits of all jobs. `max_attempts`: starts after which a job that kills the process is not run again.

    A job that ran beside others at the last of these deaths is run once more, alone: only the cause is given up.
    """

    max_attempts: int = 3
    max_seconds: float = float("inf")  # running time of one job
    max_pending: int | None = None  # waiting jobs; None: no limit
    max_pending_of_owner: int | None = None  # waiting jobs of one owner


class JobManager:
    """The jobs of one store and the workers that run them.

    run: computes one job. devices: the device of each worker; a device named twice runs two jobs at once. listeners:
    are notified when a job changes or ends. prepare_worker: is called once on each worker's thread. clock: monotonic
    seconds. Safe to use from many threads.
    """

    def __init__(
        self,
        store: JobStore,
        run: Run,
        *,
        devices: Sequence[str],
        listeners: Sequence[JobListener] = (),
        limits: JobLimits = JobLimits(),
        prepare_worker: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._limits = limits
        self._listener = JobListeners(listeners)
        self._running = RunningJobs(clock)
        self._eta = EtaEstimator(
            len(devices), lambda: [entry.eta for entry in self._running.all()], store.waiting_kinds, clock
        )
        self._workers = WorkerPool(
            store,
            run,
            self._running,
            self._eta,
            self._listener,
            devices=devices,
            max_seconds=limits.max_seconds,
            prepare_worker=prepare_worker,
            clock=clock,
        )
        self._progress_writer = ProgressWriter(store, self._running)

    # Life

    def start(self) -> None:
        """Recover the jobs that a crash interrupted, then start the workers."""
        max_attempts = self._limits.max_attempts
        for job in self._store.recover(max_attempts, interrupted):
            log.warning("job_recovered", job_id=job.job_id, attempt=job.attempt, max_attempts=max_attempts)
        self._workers.start(suspects=self._store.suspects(max_attempts))
        self._progress_writer.start()

    def stop(self, grace: float) -> None:
        """Accept and start no more jobs; after `grace` seconds, put those that still run back to pending."""
        self._workers.stop(grace)
        self._progress_writer.stop()

    @property
    def is_alive(self) -> bool:
        """Whether jobs are accepted and every worker runs."""
        return self._workers.is_alive

    # Jobs

    def submit(
        self,
        request: AttributionRequest,
        *,
        idempotency_key: str | None = None,
        owner: str = "",
        reuse_key: str | None = None,
    ) -> JobRecord:
        """Accept a job; it is durable when this returns. An idempotency key used before returns the first job.

        reuse_key: equal for requests whose results are equal; with `request.reuse` a stored one is returned.

        Raises `ShuttingDown`, `QueueFull`, `StorageFailed`, and `KeyReused` for a key of another request.
        """
        if self._workers.is_stopping:
            raise ShuttingDown("The server is shutting down; send the job again in a moment.")
        limits = self._limits
        try:
            job, is_new = self._store.add(
                Submission(request, idempotency_key, owner, reuse_key, limits.max_pending, limits.max_pending_of_owner)
            )
        except QueueFull as error:
            raise QueueFull(error.detail, headers={"Retry-After": str(self._eta.retry_after())}) from None
        if not is_new:
            return self._current(job)
        if job.reused_from:
            log.info("job_reused", job_id=job.job_id, reused_from=job.reused_from)
            self._listener.job_changed(job.job_id)
            return self._current(job)
        self._workers.announce_job()
        log.info("job_accepted", job_id=job.job_id, model=request.model, method=",".join(request.method_names))
        return self._current(job)

    def get(self, job_id: str, owner: OwnerFilter) -> JobRecord:
        """Return the job with its latest progress. Raises `JobNotFound`, also for a job of another owner."""
        job = self._store.get(job_id, owner)
        if job is None:
            raise _not_found(job_id)
        return self._current(job)

    def cancel(self, job_id: str, owner: OwnerFilter) -> JobRecord:
        """Cancel a waiting job at once, or ask a running one to stop, which takes up to one forward pass.

        Returns the job as it is then. Raises `JobNotFound`, and `JobEnded` for a job that has ended.
        """
        before = self.get(job_id, owner)
        if before.status.is_terminal:
            raise JobEnded(f"The job is {before.status}, so there is nothing to cancel. DELETE removes it.")
        # Before the store's row changes: the worker removes the request when the job ends, so it cannot be left behind.
        self._running.request_cancel(job_id)
        job = self._store.request_cancel(job_id)
        if job is None or job.status is not JobStatus.RUNNING:
            self._running.withdraw_cancel(job_id)
        if job is None:
            raise _not_found(job_id)
        if job.unreadable and job.status is JobStatus.RUNNING and self._running.get(job_id) is None:
            self._store.cancel_unreadable(job)  # a worker claims no such job, so none will end it
            self._running.withdraw_cancel(job_id)
            job = self.get(job_id, owner)
        log.info("job_cancel_requested", job_id=job_id, status=job.status.value)
        self._listener.job_changed(job_id)
        return self._current(job)

    def delete(self, job_id: str, owner: OwnerFilter) -> None:
        """Delete an ended job and its result. Raises `JobNotFound`, and `JobActive` for a job that has not ended."""
        self.get(job_id, owner)
        job = self._store.delete(job_id)
        if job is None:
            raise _not_found(job_id)
        if not job.status.is_terminal:
            raise JobActive(f"The job is {job.status}; cancel it first: POST /attribution/jobs/{job_id}/cancel.")
        log.info("job_deleted", job_id=job_id)

    def update(self, job_id: str, owner: OwnerFilter, update: JobUpdate) -> JobRecord:
        """Change the name, notes or tags of a job in any status. Raises `JobNotFound` and `InvalidRequest`."""
        job = self._store.update(job_id, owner, update)
        if job is None:
            raise _not_found(job_id)
        self._listener.job_changed(job_id)
        return self._current(job)

    def cancel_many(self, job_ids: Sequence[str], owner: OwnerFilter) -> dict[str, ServiceError | None]:
        """Cancel each job as `cancel` does. Returns by id what that would have raised, or None."""
        return {job_id: _refusal(partial(self.cancel, job_id, owner)) for job_id in job_ids}

    def delete_many(self, job_ids: Sequence[str], owner: OwnerFilter) -> dict[str, ServiceError | None]:
        """Delete each job as `delete` does. Returns by id what that would have raised, or None."""
        return {job_id: _refusal(partial(self.delete, job_id, owner)) for job_id in job_ids}

    def facets(self, owner: str) -> JobFacets:
        """Return the models, methods and tags by which this owner's jobs can be filtered."""
        return self._store.facets(owner)

    def page(self, filters: Filters, *, limit: int, before: int | None) -> list[JobRecord]:
        """Return up to `limit` jobs, newest first; `before`: only those with a smaller `seq`."""
        jobs = self._with_webhooks(self._store.page(filters, limit=limit, before=before))
        return [self._with_progress(job) for job in jobs]

    def shared(self, token: str) -> JobRecord:
        """Return the job that the token of a link opens. Raises `ShareNotFound` and `ShareExpired`."""
        return self._with_progress(self._store.shares.job(token))

    def partial(self, job: JobRecord) -> Sequence[ResultPart]:
        """Return the unfinished result of a running job as the parts of a result; empty before the first step."""
        return encoded_partial(self._running, job.job_id)

    def seconds_until_run(self, owner: str, priority: int) -> float | None:
        """Return the seconds that a job submitted now would wait for a worker; None before any job has completed."""
        return self._eta.until_start(self._store.place_of_next(owner, priority))

    def _current(self, job: JobRecord) -> JobRecord:
        """Add what is not in the job's row."""
        (job,) = self._with_webhooks([job])
        return self._with_progress(job)

    def _with_webhooks(self, jobs: Sequence[JobRecord]) -> Sequence[JobRecord]:
        """Add the deliveries of the jobs' webhooks."""
        wanted = [job.seq for job in jobs if job.request and job.request.webhook]
        if not wanted:
            return jobs
        states = self._store.webhooks.states(wanted)
        return [replace(job, webhook=states.get(job.seq)) for job in jobs]

    def _with_progress(self, job: JobRecord) -> JobRecord:
        """Add what the store does not know: the latest progress, the place in the queue, the ETA."""
        if job.status is JobStatus.PENDING:
            place = self._store.queue_position(job) if job.queue_position is None else job.queue_position
            eta = self._eta.of_waiting(job.kind, place)
            return replace(job, queue_position=place, progress=job.progress.model_copy(update={"eta_seconds": eta}))
        running = self._running.get(job.job_id)
        if running is None or job.status is not JobStatus.RUNNING:
            return job
        eta = self._eta.of_running(running.eta)
        return replace(job, progress=running.progress.model_copy(update={"eta_seconds": eta}))


def _refusal(action: Callable[[], object]) -> ServiceError | None:
    """Do an action on one job. Returns the error if the job's existence or status does not allow it."""
    try:
        action()
    except (JobNotFound, JobEnded, JobActive) as error:
        return error
    return None


def _not_found(job_id: str) -> JobNotFound:
    return JobNotFound(f"There is no job {job_id!r}. GET /attribution/jobs lists your jobs.")
