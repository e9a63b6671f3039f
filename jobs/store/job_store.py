"""Durable jobs (rows in SQLite) and their results (files).

Knows nothing of HTTP, of workers, or of the content of a result, which is a set of named byte strings. A job's row is
committed with fsync before `add` returns. A result's files are fsynced under names that contain the attempt before the
row that names them is committed, so a reader never sees half a result. Status changes by compare-and-set (`_move`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import structlog

from jobs.store import labels, queue_order, search
from jobs.store.admission import Candidate, admit
from jobs.store.api_keys import ApiKeys
from jobs.store.data_dir import REMEDY, DataDirectory
from jobs.store.database import Database
from jobs.store.group_commit import GroupCommit
from jobs.store.kept_results import KeptResults
from jobs.store.listing import Filters, owned, page_query
from jobs.store.records import JobRecord, OwnerFilter, Submission
from jobs.store.result_files import ResultFile, ResultFiles
from jobs.store.reuse import with_stored_result
from jobs.store.rows import LATEST, is_job, record, unreadable_error
from jobs.store.schema import IS_RUNNING, IS_WAITING, jobs, result_files
from jobs.store.shares import Shares
from jobs.store.webhook_deliveries import WebhookDeliveries
from models import JobFacets, JobStatus, JobUpdate, Problem, Progress, ResultPart
from problems import ServiceError, StorageFailed

log = structlog.get_logger(__name__)


class JobStore:
    """The jobs of one data directory, which the store locks against other servers. Safe to use from many threads.

    clock: seconds since the epoch. monotonic: seconds by a clock that never jumps. Raises `StorageFailed` if another
    server uses the directory, if it cannot be written, or if a newer version wrote it. Every method raises it if the
    disk fails. No content of a row makes a method raise (`jobs.store.rows`).
    """

    def __init__(
        self,
        data_dir: Path,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall_clock = clock
        self._directory = DataDirectory(data_dir)
        self._results = ResultFiles(self._directory.results)
        self._directory.lock()
        try:
            self._directory.open()
            self._database = Database(self._directory.database)
        except BaseException:
            self._directory.release()
            raise
        self._accept = GroupCommit[Candidate, JobRecord](self._admit)
        read, write = self._database.read, self._database.write
        self.keys = ApiKeys(self._database.engine)
        self.webhooks = WebhookDeliveries(read, write, self._clock)
        self.shares = Shares(read, write, self._clock)
        self._turns = queue_order.Turns()
        try:
            self._database.prepare(may_be_new=self._results.is_empty)
            read, write = self._database.read, self._database.write
            self._kept = KeptResults(self._results, read, write, self._clock, monotonic)
        except sa.exc.DBAPIError as error:
            self._release()
            raise StorageFailed(f"The job store {data_dir} cannot be opened: {error.orig}. {REMEDY}") from error
        except BaseException:
            self._release()
            raise

    def _clock(self) -> float:
        """Return the seconds since the epoch, within the range of dates, however wrong the clock is."""
        return min(max(0.0, self._wall_clock()), LATEST)

    def close(self) -> None:
        """Close the database and unlock the directory."""
        with suppress(StorageFailed):
            self._kept.save_clock()
        self._release()

    def _release(self) -> None:
        self.keys.close()
        self._database.close()
        self._directory.release()

    # Jobs

    def add(self, submission: Submission) -> tuple[JobRecord, bool]:
        """Accept a job. When this returns, the job survives a crash of the process and of the machine.

        Returns the job and True; or the earlier job of the same idempotency key and False. Raises `KeyReused` if that
        job has another request, `QueueFull`, and `InvalidRequest` if the request could not be read back from the store.
        """
        self._directory.check()
        _ = submission.stored_request
        candidate = Candidate(submission)
        if submission.request.reuse:
            candidate = with_stored_result(candidate, self._database.read, self.files, self._results)
        _ = candidate.words  # before other submissions wait for this one
        try:
            job = self._accept(candidate)
        except Exception:
            self._results.remove(file.name for file in candidate.files)
            raise
        is_new = job.job_id == candidate.job_id
        if not is_new:
            self._results.remove(file.name for file in candidate.files)
        return job, is_new

    def get(self, job_id: str, owner: OwnerFilter) -> JobRecord | None:
        """Return the job, or None if there is none of this owner."""
        query = owned(sa.select(jobs).where(is_job(job_id)), jobs.c.owner, owner)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        job = None if row is None else record(row)
        return job if job and job.job_id == job_id else None

    def page(self, filters: Filters, *, limit: int, before: int | None = None) -> list[JobRecord]:
        """Return jobs with `seq` < `before`, newest first, with their places in the queue."""
        with self._database.read() as connection:
            found = [record(row) for row in connection.execute(page_query(filters, limit=limit, before=before))]
            places = queue_order.positions(connection, [job for job in found if job.status is JobStatus.PENDING])
        return [replace(job, queue_position=places.get(job.seq)) for job in found]

    def active(self) -> dict[JobStatus, int]:
        """Return how many jobs are pending and how many are running."""
        counts = [sa.select(sa.func.count()).where(each).scalar_subquery() for each in (IS_WAITING, IS_RUNNING)]
        with self._database.read() as connection:
            waiting, running = connection.execute(sa.select(*counts)).one()
        return {JobStatus.PENDING: waiting, JobStatus.RUNNING: running}

    def queue_position(self, job: JobRecord) -> int:
        """Return how many jobs run before a pending one, if no more arrive."""
        with self._database.read() as connection:
            return queue_order.positions(connection, [job])[job.seq]

    def place_of_next(self, owner: str, priority: int) -> int:
        """Return how many jobs would run before one submitted now."""
        with self._database.read() as connection:
            return queue_order.Waiting(connection).place_of_next(owner, priority)

    def waiting_kinds(self) -> dict[tuple[str, str], int]:
        """Return how many jobs wait, by model and method names."""
        query = sa.select(jobs.c.model, jobs.c.method, sa.func.count()).where(IS_WAITING)
        with self._database.read() as connection:
            rows = connection.execute(query.group_by(jobs.c.model, jobs.c.method))
            return {(model, method): count for model, method, count in rows}

    def suspects(self, max_attempts: int) -> list[str]:
        """Return the ids of the pending jobs that a server's death ended in their last attempt, oldest first."""
        with self._database.read() as connection:
            return [job.job_id for job in map(record, queue_order.suspects(connection, max_attempts))]

    def claim_suspect(self, job_id: str) -> JobRecord | None:
        """Take this pending job and mark it running. Returns None if it is not pending, or cannot be read and fails."""
        with self._database.write() as connection:
            job = self._take(connection, is_job(job_id))
        return None if job is None or job.unreadable else job

    def claim(
        self, busy_models: Collection[str] = (), on_unreadable: Callable[[str], None] = lambda _: None
    ) -> JobRecord | None:
        """Take the next pending job and mark it running. Returns None if no job waits.

        Owners take turns. Of one owner's jobs, those whose model is in `busy_models` come last; then higher priority
        comes first, then older. Jobs that cannot be read fail instead; `on_unreadable` is called with their ids.
        """
        self._directory.check()
        while True:
            with self._database.write() as connection:
                seq = self._turns.next(connection, busy_models)
                job = None if seq is None else self._take(connection, jobs.c.seq == seq)
            if job is None or not job.unreadable:
                return job
            on_unreadable(job.job_id)

    def _take(self, connection: sa.Connection, which: sa.ColumnElement[bool]) -> JobRecord | None:
        """Mark a pending job running, or failed if it cannot be read."""
        row = connection.execute(queue_order.claiming(which, self._clock())).one_or_none()
        job = None if row is None else record(row)
        if job is not None and job.unreadable:
            self._end_unreadable(connection, job, JobStatus.FAILED)
        return job

    def save_progress(self, progress: Iterable[tuple[JobRecord, Progress]]) -> None:
        """Store the progress of running jobs; the caller limits how often."""
        with self._database.write() as connection:
            for job, latest in progress:
                connection.execute(sa.update(jobs).where(*_held(job)).values(progress=latest.model_dump_json()))

    def complete(self, job: JobRecord, result: Sequence[ResultPart], progress: Progress) -> bool:
        """Write the result with fsync, then mark the job completed. Returns False if another attempt has the job."""
        files = self._results.write(job.job_id, job.attempt, result)
        return self._end(job, JobStatus.COMPLETED, progress, files)

    def fail(
        self, job: JobRecord, error: Problem, progress: Progress | None = None, partial: Sequence[ResultPart] = ()
    ) -> bool:
        """Mark the job failed and store its partial result. Returns False if another attempt has the job."""
        files = self._try_to_write(job, partial)
        return self._end(job, JobStatus.FAILED, progress, files, error=error.model_dump_json())

    def request_cancel(self, job_id: str) -> JobRecord | None:
        """Cancel a pending job, or mark a running one as to be cancelled; an ended one does not change.

        Returns the job after the change, or None if there is none.
        """
        waiting = (is_job(job_id), jobs.c.status == JobStatus.PENDING.value)
        running = (is_job(job_id), jobs.c.status == JobStatus.RUNNING.value)
        ended = {"status": JobStatus.CANCELLED.value, "finished_at": self._clock(), "cancel_requested": True}
        with self._database.write() as connection:
            connection.execute(sa.update(jobs).where(*waiting).values(ended))
            connection.execute(sa.update(jobs).where(*running).values(cancel_requested=True))
            row = connection.execute(sa.select(jobs).where(is_job(job_id))).one_or_none()
        return None if row is None else record(row)

    def cancel_unreadable(self, job: JobRecord) -> None:
        """Mark a job cancelled that is running by its row, which cannot be read, and that no worker runs."""
        with self._database.write() as connection:
            self._end_unreadable(connection, job, JobStatus.CANCELLED)

    def cancel(self, job: JobRecord, progress: Progress | None = None, partial: Sequence[ResultPart] = ()) -> bool:
        """Mark a running job cancelled, after it left the device, and store its partial result.

        Returns False if another attempt has the job.
        """
        files = self._try_to_write(job, partial)
        return self._end(job, JobStatus.CANCELLED, progress, files)

    def delete(self, job_id: str) -> JobRecord | None:
        """Delete an ended job and its result; an active one does not change. Returns the job as found, or None."""
        with self._database.write() as connection:
            row = connection.execute(sa.select(jobs).where(is_job(job_id))).one_or_none()
            if row is None:
                return None
            job = record(row)
            if not job.status.is_terminal:
                return job
            names = self._kept.forget(connection, [row.job_id])
            connection.execute(sa.delete(jobs).where(jobs.c.seq == row.seq))
            search.remove(connection, row.seq)
        self._results.remove(names)
        return job

    def update(self, job_id: str, owner: OwnerFilter, update: JobUpdate) -> JobRecord | None:
        """Change the name, notes or tags of a job in any status. Returns the job as it is then, or None.

        Raises `InvalidRequest` if it would have too many tags, or cannot be read.
        """
        query = owned(sa.select(jobs).where(is_job(job_id)), jobs.c.owner, owner)
        with self._database.write() as connection:
            row = connection.execute(query).one_or_none()
            if row is None:
                return None
            labels.change(connection, record(row), update)
            return record(connection.execute(query).one())

    def facets(self, owner: str) -> JobFacets:
        """Return the values by which this owner's jobs can be filtered."""
        with self._database.read() as connection:
            return labels.facets(connection, owner)

    def expire(self, *, max_age: float, keep: int, keep_bytes: int) -> list[str]:
        """Remove results older than `max_age` seconds, and the oldest beyond a number or an amount of bytes.

        Their jobs stay, marked as expired. Returns the ids of the jobs.
        """
        return self._kept.expire(max_age=max_age, keep=keep, keep_bytes=keep_bytes)

    def requeue(self, job: JobRecord) -> bool:
        """Put a running job back to pending, because the server stops; the attempt does not count.

        A job with a cancel request is cancelled instead. Returns False if another attempt has the job.
        """
        with self._database.write() as connection:
            given_up = sa.select(jobs.c.cancel_requested).where(*_held(job))
            if connection.execute(given_up).scalar_one_or_none():
                return self._finish(connection, job, JobStatus.CANCELLED)
            return self._move(connection, job, JobStatus.PENDING, attempt=job.attempt - 1, started_at=None)

    def recover(self, max_attempts: int, give_up: Callable[[JobRecord], Problem]) -> list[JobRecord]:
        """Recover from a crash: put running jobs back to pending; fail one that ran alone in its last attempt.

        Of jobs that ran together, any may be the cause, so none of them is given up (see `suspects`). Jobs with a
        cancel request are cancelled. give_up: returns the error of a job that fails. Returns those that were running.
        """
        with self._database.write() as connection:
            found = [record(row) for row in connection.execute(sa.select(jobs).where(IS_RUNNING))]
            for job in found:
                if job.unreadable:
                    status = JobStatus.CANCELLED if job.cancel_requested else JobStatus.FAILED
                    self._end_unreadable(connection, job, status)
                elif job.cancel_requested:
                    self._finish(connection, job, JobStatus.CANCELLED)
                elif job.attempt < max_attempts or len(found) > 1:
                    self._move(connection, job, JobStatus.PENDING, started_at=None)
                else:
                    error = give_up(job).model_dump_json()
                    self._finish(connection, job, JobStatus.FAILED, error=error)
        return found

    # Results

    def files(self, job_id: str) -> dict[str, ResultFile]:
        """Return the stored files of an ended job, by kind."""
        ids = sa.select(jobs.c.job_id).where(is_job(job_id)).scalar_subquery()
        query = sa.select(result_files).where(result_files.c.job_id == ids)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return {each.kind: each for each in map(ResultFile.of, rows)}

    def read(self, stored: ResultFile) -> bytes:
        """Return the bytes of a result file, verified by checksum. Raises `ResultDamaged` and `StorageFailed`."""
        return self._results.read(stored)

    def is_writable(self) -> bool:
        """Whether a job could be accepted now: the database and the result files can be written."""
        try:
            self._directory.check()
            with self._database.write() as connection:
                connection.execute(sa.update(jobs).where(sa.false()).values(attempt=0))
        except (sa.exc.SQLAlchemyError, StorageFailed):
            return False
        return self._results.are_writable

    # Inside

    def _end(
        self, job: JobRecord, status: JobStatus, progress: Progress | None, files: Sequence[ResultFile], **values: Any
    ) -> bool:
        """Mark a running job ended and store the rows of its files."""
        if progress is not None:
            values["progress"] = progress.model_dump_json()
        try:
            with self._database.write() as connection:
                moved = self._finish(connection, job, status, **values)
                if moved and files:
                    rows = [{"job_id": job.job_id, **vars(each)} for each in files]
                    connection.execute(sa.insert(result_files), rows)
        except StorageFailed:
            self._results.remove(each.name for each in files)
            raise
        if not moved:
            self._results.remove(each.name for each in files)
        return moved

    def _finish(self, connection: sa.Connection, job: JobRecord, status: JobStatus, **values: Any) -> bool:
        times = {"finished_at": self._clock(), "kept_since": self._kept.now()}
        return self._move(connection, job, status, **times, **values)

    def _end_unreadable(self, connection: sa.Connection, job: JobRecord, status: JobStatus) -> None:
        """End an active job whose row cannot be read. Its other columns stay, because they show what happened."""
        error = None
        if status is JobStatus.FAILED:
            location = f"/attribution/jobs/{job.job_id}"
            error = unreadable_error(job.unreadable or "").to_problem(location).model_dump_json()
        ended = {"status": status.value, "finished_at": self._clock(), "error": error}
        active = jobs.c.status.in_([JobStatus.PENDING.value, JobStatus.RUNNING.value])
        connection.execute(sa.update(jobs).where(jobs.c.seq == job.seq, active).values(ended))
        log.error("job_unreadable", job_id=job.job_id, reason=job.unreadable, status=status.value)

    def _try_to_write(self, job: JobRecord, partial: Sequence[ResultPart]) -> list[ResultFile]:
        """Write a partial result. Returns no files if the disk fails, because the job must end all the same."""
        try:
            return self._results.write(job.job_id, job.attempt, partial) if partial else []
        except StorageFailed:
            return []

    def _move(self, connection: sa.Connection, job: JobRecord, status: JobStatus, **values: Any) -> bool:
        """Change the status of a claimed job, if it is still running this attempt. The only place that does so."""
        moved = connection.execute(sa.update(jobs).where(*_held(job)).values(status=status.value, **values))
        return moved.rowcount == 1

    def _admit(self, candidates: Sequence[Candidate]) -> list[JobRecord | ServiceError]:
        with self._database.write() as connection:
            return admit(connection, candidates, self._clock(), self._kept.now())


def _held(job: JobRecord) -> tuple[sa.ColumnElement[bool], ...]:
    return jobs.c.seq == job.seq, jobs.c.status == JobStatus.RUNNING.value, jobs.c.attempt == job.attempt
