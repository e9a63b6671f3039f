"""Worker threads: each claims jobs from the store, runs one at a time to its end, and stores how it ended.

Knows no torch and no HTTP: what computes a job is a `Run`. A worker survives any exception of a job or of the store.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence

import structlog

from jobs.eta import EtaEstimator
from jobs.listeners import JobListener
from jobs.progress import ProgressReporter
from jobs.run import Run
from jobs.running_jobs import RunningJobs
from jobs.store.job_store import JobStore
from jobs.store.records import JobRecord
from models import JobStatus, Problem, Progress, ResultPart
from problems import AttributionFailed, Cancelled, Interrupted, ServiceError, StorageFailed, TimedOut

log = structlog.get_logger(__name__)

_STORE_INTERVAL = 1.0  # seconds between two attempts to store the end of a job on a failing disk
_STORE_PATIENCE = 60.0  # seconds after which a result that cannot be stored is given up
_IDLE_INTERVAL = 1.0  # seconds after which an idle worker looks for jobs even if none was announced
_ABORT_PATIENCE = 5.0  # seconds that `stop` waits for a job that was asked to stop


class WorkerPool:
    """The worker threads, one for each entry of `devices` (a device named twice runs two jobs at once).

    max_seconds: the longest that a job may run. prepare_worker: is called once on each worker's thread. clock:
    monotonic seconds.
    """

    def __init__(
        self,
        store: JobStore,
        run: Run,
        running: RunningJobs,
        eta: EtaEstimator,
        listener: JobListener,
        *,
        devices: Sequence[str],
        max_seconds: float,
        prepare_worker: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._run = run
        self._running = running
        self._eta = eta
        self._listener = listener
        self._max_seconds = max_seconds
        self._prepare_worker = prepare_worker
        self._clock = clock
        self._wake = threading.Condition()  # guards the next two, and is notified when one changes
        self._announced = 0  # jobs announced so far, so that a job announced while a worker claims is not missed
        self._stopping = False  # claim no more jobs
        self._aborting = False  # stop the running jobs
        self._suspects: list[str] = []  # see `start`
        self._alone = threading.Lock()  # held by the worker that runs a suspect, and by each to see that none is left
        self._threads = [
            threading.Thread(target=self._work, args=(device,), name=f"worker-{device}-{index}", daemon=True)
            for index, device in enumerate(devices)
        ]

    def start(self, suspects: Sequence[str] = ()) -> None:
        """Start the threads.

        suspects: ids of pending jobs that ran each time when a server died, as often as a job may. They run first and
        one at a time, with no other job beside them, so that only a job that kills the process alone is given up.
        """
        self._suspects = list(suspects)
        for thread in self._threads:
            thread.start()

    def stop(self, grace: float) -> None:
        """Claim no more jobs; after `grace` seconds stop those that still run and put them back to pending.

        A job that does not react within seconds is left running; it is recovered at the next start.
        """
        self.refuse_new_work()
        deadline = self._clock() + grace
        for thread in self._threads:
            thread.join(max(0.0, deadline - self._clock()))
        self._aborting = True
        for thread in self._threads:
            thread.join(_ABORT_PATIENCE)

    def refuse_new_work(self) -> None:
        """Claim no more jobs."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()

    def announce_job(self) -> None:
        """Wake one idle worker, because a job was accepted."""
        with self._wake:
            self._announced += 1
            self._wake.notify()

    @property
    def is_stopping(self) -> bool:
        """Whether no more jobs are claimed."""
        return self._stopping

    @property
    def is_alive(self) -> bool:
        """Whether every worker runs and claims jobs."""
        return not self._stopping and all(thread.is_alive() for thread in self._threads)

    def _work(self, device: str) -> None:
        """Claim and run jobs on one device until the pool stops."""
        self._prepare_worker()
        while self._run_suspect(device):
            pass
        while not self._stopping:
            announced = self._announced
            try:
                job = self._store.claim(self._running.models_on(device), self._listener.job_changed)
            except StorageFailed as error:  # for example while the results folder is missing
                log.warning("claim_failed", error=error.detail)
                job = None
            except Exception:  # the store may fail for a while; the worker must be there when it recovers
                log.exception("claim_failed")
                job = None
            if job is None:
                with self._wake:
                    self._wake.wait_for(lambda: self._stopping or self._announced != announced, _IDLE_INTERVAL)  # noqa: B023
                continue
            self._run_claimed(job, device)

    def _run_suspect(self, device: str) -> bool:
        """Run the next suspect while the other workers wait; returns False once there is none, or the pool stops."""
        with self._alone:
            if self._stopping or not self._suspects:
                return False
            try:
                job = self._store.claim_suspect(self._suspects[0])
            except Exception:  # as in `_work`
                log.exception("claim_failed")
                with self._wake:
                    self._wake.wait_for(lambda: self._stopping, _IDLE_INTERVAL)
                return True
            del self._suspects[0]
            if job is not None:
                self._run_claimed(job, device)
            return True

    def _run_claimed(self, job: JobRecord, device: str) -> None:
        self._running.add(job, device)
        try:
            with structlog.contextvars.bound_contextvars(job_id=job.job_id):
                self._run_to_end(job, device)
        finally:
            self._running.remove(job.job_id)
            self._listener.job_changed(job.job_id)

    def _run_to_end(self, job: JobRecord, device: str) -> None:
        """Run a claimed job and store its end, whatever happens."""
        started = self._clock()
        log.info("job_started", attempt=job.attempt, device=device, model=job.model)
        self._listener.job_changed(job.job_id)
        request = job.accepted_request
        limit = min(request.timeout_seconds or math.inf, self._max_seconds)

        def should_cancel() -> bool:
            return self._aborting or self._running.is_cancel_requested(job.job_id) or self._clock() - started > limit

        try:
            result = self._run(
                request,
                device=device,
                report=ProgressReporter(job.job_id, self._running, self._listener, self._clock),
                should_cancel=should_cancel,
                offer_partial=lambda encode: self._running.offer_partial(job.job_id, encode),
            )
            progress = self._progress(job)
            stored = self._store_end(lambda: self._store.complete(job, result, progress), _STORE_PATIENCE, job)
            log.info("job_completed", seconds=round(self._clock() - started, 3), stored=stored)
            status = JobStatus.COMPLETED
        except Cancelled:
            status = self._end_stopped(job, limit)
        except SystemExit:  # tells this thread to end
            raise
        except BaseException as error:  # a library's panic is no `Exception`, and must not end the worker
            status = self._end_failed(job, error)
        seconds = self._clock() - started
        if status.is_terminal:
            self._listener.job_ended(job, status, seconds)
        if status is JobStatus.COMPLETED:
            self._eta.durations.add(job.kind, seconds)

    def _end_stopped(self, job: JobRecord, limit: float) -> JobStatus:
        """Store the end of a job that stopped on request: cancelled, put back by a shutdown, or over its time limit."""
        if self._running.is_cancel_requested(job.job_id):
            progress, partial = self._progress(job), self._partial(job)
            self._store_end(lambda: self._store.cancel(job, progress, partial))
            log.info("job_cancelled")
            return JobStatus.CANCELLED
        if self._aborting:
            self._store_end(lambda: self._store.requeue(job))
            log.info("job_requeued")
            return JobStatus.PENDING
        return self._end_failed(
            job,
            TimedOut(
                f"The job ran longer than {limit:g} seconds. Shorten the text, lower n_steps, or give a larger "
                "timeout_seconds, up to the server's limit (INSEQ_API_MAX_JOB_SECONDS)."
            ),
        )

    def _end_failed(self, job: JobRecord, error: BaseException) -> JobStatus:
        """Store the end of a job that raised. Unexpected exceptions are logged with their traceback."""
        if isinstance(error, ServiceError):
            # The operator's log also gets the underlying exception (Captum's own message, for example).
            log.info("job_failed", problem=error.slug, exc_info=error.__cause__)
            problem = error.to_problem(_instance(job))
        else:
            log.error("job_failed", problem=AttributionFailed.slug, exc_info=error)
            reason = str(error).strip() or "no further explanation"
            problem = AttributionFailed(f"{type(error).__name__}: {reason}").to_problem(_instance(job))
        progress, partial = self._progress(job), self._partial(job)
        self._store_end(lambda: self._store.fail(job, problem, progress, partial))
        return JobStatus.FAILED

    def _store_end(
        self, store: Callable[[], bool], patience: float = math.inf, cancellable: JobRecord | None = None
    ) -> bool:
        """Store how a job ended, and try again while the disk fails: it may be full, and the result took long to make.

        Returns whether the job was still this attempt's. Raises `StorageFailed` after `patience` seconds, and
        `Cancelled` if the job `cancellable` is cancelled meanwhile. When the server stops first, the job stays
        `running` in the store and runs again after the restart.
        """
        deadline = self._clock() + patience
        while True:
            try:
                return store()
            except StorageFailed as error:
                log.warning("job_end_not_stored", error=error.detail)
                if self._stopping:
                    return False
                if cancellable and self._running.is_cancel_requested(cancellable.job_id):
                    raise Cancelled from error
                if self._clock() > deadline:
                    raise
            with self._wake:
                self._wake.wait_for(lambda: self._stopping, _STORE_INTERVAL)

    def _progress(self, job: JobRecord) -> Progress:
        entry = self._running.get(job.job_id)
        return Progress() if entry is None else entry.stored_progress

    def _partial(self, job: JobRecord) -> Sequence[ResultPart]:
        return encoded_partial(self._running, job.job_id)


def encoded_partial(running: RunningJobs, job_id: str) -> Sequence[ResultPart]:
    """Return the unfinished result of a running job as the parts of a result; empty before the first step."""
    entry = running.get(job_id)
    if entry is None or entry.encode_partial is None:
        return ()
    try:
        return entry.encode_partial()
    except Exception:  # it reads data that the job changes meanwhile; the job itself must not fail because of that
        log.warning("partial_failed", job_id=job_id, exc_info=True)
        return ()


def interrupted(job: JobRecord) -> Problem:
    """Return the problem of a job during whose runs the server died `job.attempt` times."""
    return Interrupted(
        f"The server died {job.attempt} times while it ran this job, the last time with no other job beside it, so the "
        "job may be the cause and is not run again. Submit it again, or submit a smaller one."
    ).to_problem(_instance(job))


def _instance(job: JobRecord) -> str:
    return f"/attribution/jobs/{job.job_id}"
