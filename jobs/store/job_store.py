"""Durable jobs (SQLite) and their results; what touches the disk is here, in `job_schema` and in `result_files`.

Knows nothing of HTTP, threads that run jobs, or what a result means: a result is named byte strings. A job row is
committed with a full sync before `add` returns; a result is fsynced under a name of its own attempt before the row that
points at it is committed, so a reader never sees half of one. Status moves only by compare-and-set (`_move`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from filelock import FileLock, Timeout

from jobs.store import queue_order
from jobs.store.admission import Candidate, admit
from jobs.store.api_keys import ApiKeys
from jobs.store.group_commit import GroupCommit
from jobs.store.listing import Filters, beyond_limits, owned, page_query
from jobs.store.records import JobRecord, OwnerFilter, Submission, record
from jobs.store.result_files import REMEDY, ResultFile, ResultFiles
from jobs.store.schema import (
    IS_RUNNING,
    IS_WAITING,
    check_database,
    for_reading,
    for_writing,
    jobs,
    migrate,
    open_database,
    result_files,
)
from models import JobStatus, Problem, Progress, ResultPart
from problems import ServiceError, StorageFailed

_EXPIRED_AT_ONCE = 100


class JobStore:
    """The jobs of one data directory, which it locks for itself.

    Raises `StorageFailed` when the directory is in use by another server, cannot be written, or was written by a newer
    version. Safe to use from many threads.
    """

    def __init__(self, data_dir: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._results = ResultFiles(data_dir / "results")
        try:
            (data_dir / "results").mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(data_dir / "server.lock", timeout=0)
            self._lock.acquire()
        except Timeout:
            raise StorageFailed(
                f"Another server is running on {data_dir}. Stop it, or give this one its own --data-dir."
            ) from None
        except OSError as error:
            raise StorageFailed(f"{data_dir} cannot be written: {error.strerror}.") from error
        # One writer at a time: SQLite has one anyway, and a queue here is fairer than its busy timeout.
        self._write_lock = threading.Lock()
        self._accept = GroupCommit[Candidate, JobRecord](self._admit)
        self._engine = open_database(data_dir / "jobs.sqlite3")
        self._reader, self._writer = for_reading(self._engine), for_writing(self._engine)
        self.keys = ApiKeys(self._engine)
        self._turns = queue_order.Turns()
        try:
            check_database(self._engine, may_be_new=self._results.is_empty)
            migrate(self._engine)
            with self._read() as connection:
                self._results.sweep(set(connection.execute(sa.select(result_files.c.name)).scalars()))
        except sa.exc.DBAPIError as error:
            self.close()
            raise StorageFailed(f"The job store {data_dir} cannot be opened: {error.orig}. {REMEDY}") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the database and let another server have the directory."""
        self.keys.close()
        self._engine.dispose()
        self._lock.release()

    # Jobs

    def add(self, submission: Submission) -> tuple[JobRecord, bool]:
        """Accept a job: when this returns, it survives the death of the process and of the machine.

        Returns the job, and False if it is the earlier one of the same idempotency key. Raises `KeyReused` if that one
        is another request, and `QueueFull`.
        """
        candidate = Candidate(submission)
        if submission.request.reuse:
            candidate = self._with_stored_result(candidate)
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
        query = owned(sa.select(jobs).where(jobs.c.job_id == job_id), jobs.c.owner, owner)
        with self._read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else record(row)

    def page(self, filters: Filters, *, limit: int, before: int | None = None) -> list[JobRecord]:
        """Jobs accepted before number `before`, newest first, with their places in the queue."""
        with self._read() as connection:
            found = [record(row) for row in connection.execute(page_query(filters, limit=limit, before=before))]
            places = queue_order.positions(connection, [job for job in found if job.status is JobStatus.PENDING])
        return [replace(job, queue_position=places.get(job.seq)) for job in found]

    def active(self) -> dict[JobStatus, int]:
        """How many jobs wait and how many run."""
        counts = [sa.select(sa.func.count()).where(each).scalar_subquery() for each in (IS_WAITING, IS_RUNNING)]
        with self._read() as connection:
            waiting, running = connection.execute(sa.select(*counts)).one()
        return {JobStatus.PENDING: waiting, JobStatus.RUNNING: running}

    def queue_position(self, job: JobRecord) -> int:
        """How many jobs run before a pending one, if no more come."""
        with self._read() as connection:
            return queue_order.positions(connection, [job])[job.seq]

    def place_of_next(self, owner: str, priority: int) -> int:
        """How many jobs would run before one that came now."""
        with self._read() as connection:
            return queue_order.Waiting(connection).place_of_next(owner, priority)

    def waiting_kinds(self) -> dict[tuple[str, str], int]:
        """How many jobs wait, by model and method."""
        query = sa.select(jobs.c.model, jobs.c.method, sa.func.count()).where(IS_WAITING)
        with self._read() as connection:
            rows = connection.execute(query.group_by(jobs.c.model, jobs.c.method))
            return {(model, method): count for model, method, count in rows}

    def claim(self, busy_models: Collection[str] = ()) -> JobRecord | None:
        """Take the next pending job. Owners take turns; of one owner's, those on a model that is busy on this device
        come after the others, then the higher priority comes first, then the older.
        """
        with self._write() as connection:
            seq = self._turns.next(connection, busy_models)
            row = None if seq is None else connection.execute(self._claiming(seq)).one_or_none()
        return None if row is None else record(row)

    def _claiming(self, seq: int) -> Any:
        return (
            sa.update(jobs)
            .where(jobs.c.seq == seq, jobs.c.status == JobStatus.PENDING.value)
            .values(
                status=JobStatus.RUNNING.value,
                attempt=jobs.c.attempt + 1,
                started_at=self._clock(),
                progress=None,
            )
            .returning(jobs)
        )

    def save_progress(self, progress: Iterable[tuple[JobRecord, Progress]]) -> None:
        """Remember how far running jobs are; the caller bounds how often."""
        with self._write() as connection:
            for job, latest in progress:
                connection.execute(sa.update(jobs).where(*_held(job)).values(progress=latest.model_dump_json()))

    def complete(self, job: JobRecord, result: Sequence[ResultPart], progress: Progress) -> bool:
        """Store the result durably, then mark the job completed. False if the job was no longer this attempt's."""
        files = self._results.write(job.job_id, job.attempt, result)
        return self._end(job, JobStatus.COMPLETED, progress, files)

    def fail(
        self, job: JobRecord, error: Problem, progress: Progress | None = None, partial: Sequence[ResultPart] = ()
    ) -> bool:
        """Mark the job failed, with the reason, and keep what it had done. False if it was no longer this attempt's."""
        files = self._try_to_write(job, partial)
        return self._end(job, JobStatus.FAILED, progress, files, error=error.model_dump_json())

    def request_cancel(self, job_id: str) -> JobRecord | None:
        """Cancel a pending job at once, or ask a running one to stop; an ended one is left as it is.

        Returns the job as it is then, or None if there is none.
        """
        waiting = (jobs.c.job_id == job_id, jobs.c.status == JobStatus.PENDING.value)
        running = (jobs.c.job_id == job_id, jobs.c.status == JobStatus.RUNNING.value)
        ended = {"status": JobStatus.CANCELLED.value, "finished_at": self._clock(), "cancel_requested": True}
        with self._write() as connection:
            connection.execute(sa.update(jobs).where(*waiting).values(ended))
            connection.execute(sa.update(jobs).where(*running).values(cancel_requested=True))
            row = connection.execute(sa.select(jobs).where(jobs.c.job_id == job_id)).one_or_none()
        return None if row is None else record(row)

    def cancel(self, job: JobRecord, progress: Progress | None = None, partial: Sequence[ResultPart] = ()) -> bool:
        """Mark a running job cancelled, now that the device is free of it, and keep what it had done.

        False if it was no longer this attempt's.
        """
        files = self._try_to_write(job, partial)
        return self._end(job, JobStatus.CANCELLED, progress, files)

    def delete(self, job_id: str) -> JobRecord | None:
        """Forget an ended job and its result; an active one is left as it is. Returns what it was, None if nothing."""
        with self._write() as connection:
            row = connection.execute(sa.select(jobs).where(jobs.c.job_id == job_id)).one_or_none()
            if row is None:
                return None
            job = record(row)
            if not job.status.is_terminal:
                return job
            names = self._forget_files(connection, [job_id])
            connection.execute(sa.delete(jobs).where(jobs.c.job_id == job_id))
        self._results.remove(names)
        return job

    def expire(self, *, before: float, keep: int, keep_bytes: int) -> list[str]:
        """Remove results that ended before a time, and the oldest beyond a number or an amount of bytes.

        Their jobs stay, marked as expired. Returns their ids.
        """
        with self._read() as connection:
            beyond = list(connection.execute(beyond_limits(before, keep, keep_bytes)).scalars())
        expired: list[str] = []
        # A few at a time, so that nobody waits long for the lock.
        for some in (beyond[at : at + _EXPIRED_AT_ONCE] for at in range(0, len(beyond), _EXPIRED_AT_ONCE)):
            with self._write() as connection:
                still = jobs.c.job_id.in_(some)
                gone = sa.update(jobs).where(still).values(expired_at=self._clock()).returning(jobs.c.job_id)
                ids = list(connection.execute(gone).scalars())
                names = self._forget_files(connection, ids)
            self._results.remove(names)
            expired += ids
        return expired

    def requeue(self, job: JobRecord) -> bool:
        """Put a running job back to pending, because the server stops; it does not count as an attempt.

        One that was to be cancelled is.
        """
        with self._write() as connection:
            given_up = sa.select(jobs.c.cancel_requested).where(*_held(job))
            if connection.execute(given_up).scalar_one_or_none():
                return self._finish(connection, job, JobStatus.CANCELLED)
            return self._move(connection, job, JobStatus.PENDING, attempt=job.attempt - 1, started_at=None)

    def recover(self, max_attempts: int, give_up: Callable[[JobRecord], Problem]) -> list[JobRecord]:
        """After a crash: running jobs go back to pending, or fail once they were started `max_attempts` times; those
        that were to be cancelled are.

        Returns the jobs that were running.
        """
        with self._write() as connection:
            rows = connection.execute(sa.select(jobs).where(IS_RUNNING)).all()
            for job in map(record, rows):
                if job.cancel_requested:
                    self._finish(connection, job, JobStatus.CANCELLED)
                elif job.attempt < max_attempts:
                    self._move(connection, job, JobStatus.PENDING, started_at=None)
                else:
                    error = give_up(job).model_dump_json()
                    self._finish(connection, job, JobStatus.FAILED, error=error)
        return [record(row) for row in rows]

    # Results

    def files(self, job_id: str) -> dict[str, ResultFile]:
        """The stored files of a completed job, by kind."""
        query = sa.select(result_files).where(result_files.c.job_id == job_id)
        with self._read() as connection:
            rows = connection.execute(query).all()
        return {row.kind: _file(row) for row in rows}

    def read(self, stored: ResultFile) -> bytes:
        """The bytes of a result file, checked against their checksum. Raises `ResultDamaged`, `StorageFailed`."""
        return self._results.read(stored)

    def is_writable(self) -> bool:
        """Whether a job could be accepted now (for readiness)."""
        try:
            with self._write() as connection:
                connection.execute(sa.update(jobs).where(sa.false()).values(attempt=0))
        except (sa.exc.SQLAlchemyError, StorageFailed):
            return False
        return self._results.are_writable

    # Inside

    def _end(
        self, job: JobRecord, status: JobStatus, progress: Progress | None, files: Sequence[ResultFile], **values: Any
    ) -> bool:
        """Mark a running job ended, with its files."""
        if progress is not None:
            values["progress"] = progress.model_dump_json()
        try:
            with self._write() as connection:
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
        return self._move(connection, job, status, finished_at=self._clock(), **values)

    def _try_to_write(self, job: JobRecord, partial: Sequence[ResultPart]) -> list[ResultFile]:
        """The files of an unfinished result; none where there is no room for them, which is no reason not to end."""
        try:
            return self._results.write(job.job_id, job.attempt, partial) if partial else []
        except StorageFailed:
            return []

    def _move(self, connection: sa.Connection, job: JobRecord, status: JobStatus, **values: Any) -> bool:
        """The one place where a claimed job's status changes: only if it is still this attempt, and running."""
        moved = connection.execute(sa.update(jobs).where(*_held(job)).values(status=status.value, **values))
        return moved.rowcount == 1

    def _admit(self, candidates: Sequence[Candidate]) -> list[JobRecord | ServiceError]:
        with self._write() as connection:
            return admit(connection, candidates, self._clock())

    def _with_stored_result(self, candidate: Candidate) -> Candidate:
        """With the newest result of the same owner that this request would have, if there is one and it is whole."""
        submission = candidate.submission
        same = (
            jobs.c.reuse_key == submission.reuse_key,
            jobs.c.status == JobStatus.COMPLETED.value,
            jobs.c.owner == submission.owner,
            jobs.c.expired_at.is_(None),
        )
        newest = sa.select(jobs.c.job_id).where(*same).order_by(jobs.c.seq.desc()).limit(1)
        if submission.reuse_key is None:
            return candidate
        with self._read() as connection:
            source = connection.execute(newest).scalar_one_or_none()
        if source is None:
            return candidate
        try:
            files = self._results.link_all(tuple(self.files(source).values()), candidate.job_id)
        except StorageFailed:  # gone or damaged: the job is to be run
            return candidate
        return replace(candidate, reused_from=source, files=files)

    def _forget_files(self, connection: sa.Connection, job_ids: list[str]) -> list[str]:
        """Take result files out of the database; they are removed from the disk only once that is committed."""
        named = result_files.c.job_id.in_(job_ids)
        names = list(connection.execute(sa.select(result_files.c.name).where(named)).scalars())
        connection.execute(sa.delete(result_files).where(named))
        return names

    @contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        try:
            with self._reader.connect() as connection:
                yield connection
        except sa.exc.SQLAlchemyError as error:
            raise StorageFailed(f"The job store cannot be read: {_reason(error)}. {REMEDY}") from error

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        try:
            with self._write_lock, self._writer.begin() as connection:
                yield connection
        except sa.exc.SQLAlchemyError as error:
            raise StorageFailed(f"The job store cannot be written: {_reason(error)}. {REMEDY}") from error


def _reason(error: sa.exc.SQLAlchemyError) -> str:
    return str(error.orig if isinstance(error, sa.exc.DBAPIError) else error)


def _file(row: Any) -> ResultFile:
    return ResultFile(row.kind, row.name, row.codec, row.size, row.sha256)


def _held(job: JobRecord) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        jobs.c.seq == job.seq,
        jobs.c.status == JobStatus.RUNNING.value,
        jobs.c.attempt == job.attempt,
    )
