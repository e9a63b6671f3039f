"""JobManager: accept jobs, run them on worker threads, report their progress, recover them after a crash.

Knows no torch and no HTTP. The seam to whatever computes is one callable, `Run`: this request, on this device, telling
its progress, asking whether to stop, to its result. `create_app` injects it; tests inject a function of their own, and
a distributed engine would be one more.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import structlog

from jobs.progress import Live, ProgressWriter, Reporter
from jobs.store.job_store import JobStore
from jobs.store.listing import Filters
from jobs.store.records import JobRecord, Submission
from jobs.waiting_time import Pace
from models import AttributionRequest, JobStatus, Problem, Progress, ResultPart
from problems import (
    AttributionFailed,
    Cancelled,
    Interrupted,
    JobActive,
    JobEnded,
    JobNotFound,
    QueueFull,
    ServiceError,
    ShuttingDown,
    StorageFailed,
    TimedOut,
)

log = structlog.get_logger(__name__)

_STORE_INTERVAL = 1.0  # seconds between two attempts to store the end of a job on a disk that fails
_STORE_PATIENCE = 60.0  # seconds after which a result that the disk does not take is given up
_QUEUE_INTERVAL = 1.0  # seconds that a look at what waits serves for ETAs
_IDLE_WAIT = 1.0  # seconds a worker sleeps at most before it looks for work by itself


Partial = Callable[[], Sequence[ResultPart]]


class Run(Protocol):
    """Run one request somewhere and return its result.

    `offer_partial` may be given a function that encodes what is done so far, from any thread. Raises a `JobError` for
    a job that cannot be done, `Cancelled` soon after `should_cancel` turned true.
    """

    def __call__(
        self,
        request: AttributionRequest,
        *,
        device: str,
        report: Callable[[Progress], None],
        should_cancel: Callable[[], bool],
        offer_partial: Callable[[Partial], None],
    ) -> list[ResultPart]: ...


class JobManager:
    """The jobs of one store and the workers that run them."""

    def __init__(
        self,
        store: JobStore,
        run: Run,
        *,
        devices: Sequence[str],
        workers_per_device: int = 1,
        max_attempts: int = 3,
        max_seconds: float = float("inf"),
        max_pending: int | None = None,
        max_pending_of_owner: int | None = None,
        prepare_worker: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._run = run
        self._max_attempts = max_attempts
        self._max_seconds = max_seconds
        self._max_pending = max_pending
        self._max_pending_of_owner = max_pending_of_owner
        self._prepare_worker = prepare_worker
        self._clock = clock
        self._work = threading.Condition()
        self._arrivals = 0  # so that a worker that found nothing does not sleep through a job that just came
        self._stopping = False  # no new jobs, no new claims
        self._aborting = False  # running jobs are to stop
        self._cancelled: set[str] = set()  # running jobs that their owners gave up
        self._when_changed: Callable[[str], None] = lambda _: None
        self._when_ended: Callable[[JobRecord, JobStatus, float], None] = lambda *_: None
        self._live: dict[str, Live] = {}  # running jobs: their progress is fresher than the store's
        self._pace = Pace()
        self._waiting: tuple[float, dict[tuple[str, str], int]] = (-math.inf, {})  # when it was read
        self._partials: dict[str, Partial] = {}  # what running jobs have done so far
        self._busy: dict[str, list[str]] = {device: [] for device in devices}  # models being run, by device
        self._progress_writer = ProgressWriter(store, self._live)
        self._workers = [
            threading.Thread(target=self._work_loop, args=(device,), name=f"worker-{device}-{index}", daemon=True)
            for device in devices
            for index in range(workers_per_device)
        ]

    # Life

    def start(self) -> None:
        """Recover what a crash left, and start the workers."""
        for job in self._store.recover(self._max_attempts, _give_up):
            log.warning("job_recovered", job_id=job.job_id, attempt=job.attempt, max_attempts=self._max_attempts)
        for worker in self._workers:
            worker.start()
        self._progress_writer.start()

    def stop(self, grace: float) -> None:
        """Take no new work, give running jobs `grace` seconds to finish, and put the others back to pending."""
        with self._work:
            self._stopping = True
            self._work.notify_all()
        deadline = time.monotonic() + grace
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        self._aborting = True
        for worker in self._workers:
            # Cancellation takes a forward pass; a worker that is deeper in is left behind, and its job is recovered.
            worker.join(5.0)
        self._progress_writer.stop()

    @property
    def is_alive(self) -> bool:
        """Whether every worker runs."""
        return not self._stopping and all(worker.is_alive() for worker in self._workers)

    def tell_of_changes(self, listener: Callable[[str], None]) -> None:
        """Have `listener` called with the id of every job that changes, on whatever thread changed it."""
        self._when_changed = listener

    def tell_of_ends(self, listener: Callable[[JobRecord, JobStatus, float], None]) -> None:
        """Have `listener` called with every job that ran, how it ended and after how many seconds."""
        self._when_ended = listener

    # Jobs

    def submit(
        self,
        request: AttributionRequest,
        *,
        idempotency_key: str | None = None,
        owner: str = "",
        reuse_key: str | None = None,
    ) -> JobRecord:
        """Accept a job; it is durable when this returns. With a key that was used before, the job of that time.

        Raises `ShuttingDown`, `QueueFull`, and `KeyReused` for a key of another request.
        """
        if self._stopping:
            raise ShuttingDown("The server is shutting down; send the job again in a moment.")
        try:
            job, is_new = self._store.add(
                Submission(request, idempotency_key, owner, reuse_key, self._max_pending, self._max_pending_of_owner)
            )
        except QueueFull as error:
            raise QueueFull(error.detail, headers={"Retry-After": str(self._seconds_to_room())}) from None
        if not is_new:
            return self._fresh(job)
        if job.reused_from:
            log.info("job_reused", job_id=job.job_id, reused_from=job.reused_from)
            return job
        with self._work:
            self._arrivals += 1
            self._work.notify()
        log.info("job_accepted", job_id=job.job_id, model=request.model, method=",".join(request.method_names))
        return self._fresh(job)

    def get(self, job_id: str, owner: str | None = None) -> JobRecord:
        """The job, with its latest progress. Raises `JobNotFound`, also for another owner's."""
        job = self._store.get(job_id, owner)
        if job is None:
            raise JobNotFound(f"There is no job {job_id!r}. GET /attribution/jobs lists the jobs there are.")
        return self._fresh(job)

    def cancel(self, job_id: str, owner: str | None = None) -> JobRecord:
        """Give a job up: one that waits is cancelled at once, a running one within a forward pass.

        Raises `JobNotFound`, and `JobEnded` for one that has ended.
        """
        before = self.get(job_id, owner)
        if before.status.is_terminal:
            raise JobEnded(f"The job is {before.status}: there is nothing to cancel. DELETE removes it.")
        # First, so that its worker, which takes it out when the job has ended, cannot come between.
        self._cancelled.add(job_id)
        job = self._store.request_cancel(job_id)
        if job is None or job.status is not JobStatus.RUNNING:
            self._cancelled.discard(job_id)
        if job is None:
            raise JobNotFound(f"There is no job {job_id!r}.")
        log.info("job_cancel_requested", job_id=job_id, status=job.status.value)
        self._when_changed(job_id)
        return self._fresh(job)

    def delete(self, job_id: str, owner: str | None = None) -> None:
        """Forget an ended job and its result. Raises `JobNotFound`, and `JobActive` for one that has not ended."""
        self.get(job_id, owner)
        job = self._store.delete(job_id)
        if job is None:
            raise JobNotFound(f"There is no job {job_id!r}. GET /attribution/jobs lists the jobs there are.")
        if not job.status.is_terminal:
            raise JobActive(f"The job is {job.status}; cancel it first: POST /attribution/jobs/{job_id}/cancel.")
        log.info("job_deleted", job_id=job_id)

    def page(self, filters: Filters, *, limit: int, before: int | None) -> list[JobRecord]:
        """Jobs, newest first, those accepted before number `before`."""
        return [self._fresh(job) for job in self._store.page(filters, limit=limit, before=before)]

    def partial(self, job: JobRecord) -> Sequence[ResultPart]:
        """What a running job has done so far, encoded as a result; empty before there is anything."""
        encode = self._partials.get(job.job_id)
        try:
            return encode() if encode is not None else ()
        except Exception:  # it is a look at something that moves: the job itself is what counts
            log.warning("partial_failed", job_id=job.job_id, exc_info=True)
            return ()

    def seconds_until_run(self, owner: str, priority: int) -> float | None:
        """How long a job that came now would wait for a worker, or None where no job has ended yet that would tell."""
        return self._wait(self._store.place_of_next(owner, priority))

    def _fresh(self, job: JobRecord) -> JobRecord:
        """The job as it is at this moment: its progress, its place in the queue, the seconds until it ends."""
        now = self._clock()
        if job.status is JobStatus.PENDING:
            place = self._store.queue_position(job) if job.queue_position is None else job.queue_position
            wait, run = self._wait(place), self._pace.typical(job.kind)
            eta = None if wait is None or run is None else round(wait + run, 3)
            progress = job.progress.model_copy(update={"eta_seconds": eta})
            return replace(job, queue_position=place, progress=progress)
        live = self._live.get(job.job_id)
        if live is None or job.status is not JobStatus.RUNNING:
            return job
        return replace(job, progress=live.progress.model_copy(update={"eta_seconds": live.left(now, self._pace)}))

    def _wait(self, ahead: int) -> float | None:
        now = self._clock()
        if now - self._waiting[0] > _QUEUE_INTERVAL:
            self._waiting = (now, self._store.waiting_kinds())
        left = [each.left(now, self._pace) for each in list(self._live.values())]
        return self._pace.wait(ahead, self._waiting[1], left, len(self._workers))

    def _seconds_to_room(self) -> int:
        """When a place in the queue should be free: as soon as the next job ends, by what running ones have left."""
        now = self._clock()
        left = [each.left(now, self._pace) for each in list(self._live.values())]
        return max(1, math.ceil(min((each for each in left if each is not None), default=1.0)))

    # Workers

    def _work_loop(self, device: str) -> None:
        self._prepare_worker()
        while not self._stopping:
            arrivals = self._arrivals
            try:
                job = self._store.claim(busy_models=tuple(self._busy[device]))
            except Exception:  # a worker that died of it would never come back
                log.exception("claim_failed")
                job = None
            if job is None:
                with self._work:
                    self._work.wait_for(lambda: self._stopping or self._arrivals != arrivals, _IDLE_WAIT)  # noqa: B023
                continue
            self._busy[device].append(job.request.model)
            try:
                self._run_job(job, device)
            finally:
                self._busy[device].remove(job.request.model)
                self._live.pop(job.job_id, None)
                self._partials.pop(job.job_id, None)
                self._cancelled.discard(job.job_id)
                self._when_changed(job.job_id)

    def _run_job(self, job: JobRecord, device: str) -> None:
        """Run one claimed job to its end, whatever happens: a worker never dies of a job."""
        started = self._clock()
        with structlog.contextvars.bound_contextvars(job_id=job.job_id):
            log.info("job_started", attempt=job.attempt, device=device, model=job.request.model)
            self._when_changed(job.job_id)
            reporter = Reporter(job, self._live, self._clock, self._when_changed)
            limit = min(job.request.timeout_seconds or math.inf, self._max_seconds)

            def should_cancel() -> bool:
                return self._aborting or job.job_id in self._cancelled or self._clock() - started > limit

            try:
                result = self._run(
                    job.request,
                    device=device,
                    report=reporter,
                    should_cancel=should_cancel,
                    offer_partial=lambda encode: self._partials.__setitem__(job.job_id, encode),
                )
                stored = self._store_end(lambda: self._store.complete(job, result, reporter.latest), _STORE_PATIENCE)
                log.info("job_completed", seconds=round(self._clock() - started, 3), stored=stored)
                status = JobStatus.COMPLETED
            except Cancelled:
                status = self._stopped(job, limit)
            except Exception as error:
                status = self._fail(job, error)
            if status.is_terminal:
                self._when_ended(job, status, self._clock() - started)
            if status is JobStatus.COMPLETED:
                self._pace.ended(job.kind, self._clock() - started)

    def _stopped(self, job: JobRecord, limit: float) -> JobStatus:
        """A job that was told to stop has stopped, and the device is free: why was it?"""
        if job.job_id in self._cancelled:
            progress, partial = self._progress_of(job), self.partial(job)
            self._store_end(lambda: self._store.cancel(job, progress, partial))
            log.info("job_cancelled")
            return JobStatus.CANCELLED
        if self._aborting:
            self._store_end(lambda: self._store.requeue(job))
            log.info("job_requeued")
            return JobStatus.PENDING
        return self._fail(
            job,
            TimedOut(
                f"The job ran longer than {limit:g} seconds. Shorten the text, lower n_steps, or give a larger "
                "timeout_seconds, up to the server's limit (INSEQ_API_MAX_JOB_SECONDS)."
            ),
        )

    def _progress_of(self, job: JobRecord) -> Progress | None:
        live = self._live.get(job.job_id)
        return None if live is None else live.progress

    def _fail(self, job: JobRecord, error: Exception) -> JobStatus:
        if isinstance(error, ServiceError):
            # What an error was made of (Captum's own complaint, say) is for the operator, too.
            log.info("job_failed", problem=error.slug, exc_info=error.__cause__)
            problem = error.to_problem(_instance(job))
        else:
            log.error("job_failed", problem=AttributionFailed.slug, exc_info=error)
            reason = str(error).strip() or "no further explanation"
            detail = f"{type(error).__name__}: {reason}"
            problem = AttributionFailed(detail).to_problem(_instance(job))
        progress, partial = self._progress_of(job), self.partial(job)
        self._store_end(lambda: self._store.fail(job, problem, progress, partial))
        return JobStatus.FAILED

    def _store_end(self, store: Callable[[], bool], patience: float = math.inf) -> bool:
        """Store how a job ended, again and again while the disk does not take it (it may be full): the result was long
        in the making, and no other job could end either. Raises `StorageFailed` when the patience is over.

        When the server stops, the job is left `running` and is run again after the restart.
        """
        deadline = time.monotonic() + patience
        while True:
            try:
                return store()
            except StorageFailed as error:
                log.warning("job_end_not_stored", error=error.detail)
                if self._stopping:
                    return False
                if time.monotonic() > deadline:
                    raise
            with self._work:
                self._work.wait_for(lambda: self._stopping, _STORE_INTERVAL)


def _instance(job: JobRecord) -> str:
    return f"/attribution/jobs/{job.job_id}"


def _give_up(job: JobRecord) -> Problem:
    return Interrupted(
        f"The server stopped while it ran this job, {job.attempt} times; it may be the cause, and is not run again. "
        "Submit it again, or a smaller one."
    ).to_problem(_instance(job))
