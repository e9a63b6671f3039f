"""Durable jobs (SQLite) and their results; what touches the disk is here, in `job_schema` and in `result_files`.

Knows nothing of HTTP, threads that run jobs, or what a result means: a result is named byte strings. A job row is
committed with a full sync before `add` returns; a result is fsynced under a name of its own attempt before the row that
points at it is committed, so a reader never sees half of one. Status moves only by compare-and-set (`_move`).
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from filelock import FileLock, Timeout

import job_queue
from api_keys import ApiKeys
from job_records import JobRecord, Submission, record
from job_schema import job_tags, jobs, migrate, open_database, result_files
from models import JobStatus, Problem, Progress, ResultPart, Stage
from problems import KeyReused, StorageFailed
from result_files import ResultFile, ResultFiles


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
        self._engine = open_database(data_dir / "jobs.sqlite3")
        self.keys = ApiKeys(self._engine)
        self._turns = job_queue.Turns()
        try:
            migrate(self._engine)
            with self._read() as connection:
                self._results.sweep(set(connection.execute(sa.select(result_files.c.name)).scalars()))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the database and let another server have the directory."""
        self._engine.dispose()
        self._lock.release()

    # Jobs

    def add(self, submission: Submission) -> tuple[JobRecord, bool]:
        """Accept a job: when this returns, it survives the death of the process and of the machine.

        Returns the job, and False if it is the earlier one of the same idempotency key. Raises `KeyReused` if that one
        is another request, and `QueueFull`.
        """
        request, key = submission.request, submission.idempotency_key
        row = {
            "job_id": uuid.uuid4().hex,
            "status": JobStatus.PENDING.value,
            "model": request.model,
            "method": request.method,
            "request": request.model_dump_json(),
            "attempt": 0,
            "created_at": self._clock(),
            "cancel_requested": False,
            "idempotency_key": key,
            "fingerprint": submission.fingerprint if key else None,
            "owner": submission.owner,
            "priority": request.priority,
            "reuse_key": submission.reuse_key,
        }
        tags = [{"job_id": row["job_id"], "name": name, "value": value} for name, value in request.tags.items()]
        with self._write() as connection:
            if key is not None:
                same = (jobs.c.owner == submission.owner, jobs.c.idempotency_key == key)
                earlier = connection.execute(sa.select(jobs).where(*same)).one_or_none()
                if earlier is not None:
                    return _earlier(earlier, submission), False
            source = self._same_result(connection, submission) if request.reuse else None
            files = [] if source is None else self._results_of(connection, source, str(row["job_id"]))
            if files:
                progress = Progress(stage=Stage.SAVING, fraction=1.0).model_dump_json()
                row |= {"status": JobStatus.COMPLETED.value, "progress": progress, "reused_from": source}
                row |= {"started_at": row["created_at"], "finished_at": row["created_at"]}
            else:
                job_queue.check_room(connection, submission)
            stored = connection.execute(sa.insert(jobs).values(row).returning(jobs)).one()
            if tags:
                connection.execute(sa.insert(job_tags), tags)
            if files:
                connection.execute(sa.insert(result_files), [{"job_id": row["job_id"], **vars(each)} for each in files])
        return record(stored), True

    def get(self, job_id: str, owner: str | None = None) -> JobRecord | None:
        """The job, or None; with an owner, only of that one's."""
        query = sa.select(jobs).where(jobs.c.job_id == job_id)
        with self._read() as connection:
            row = connection.execute(query if owner is None else query.where(jobs.c.owner == owner)).one_or_none()
        return None if row is None else record(row)

    def page(
        self,
        *,
        limit: int,
        before: int | None = None,
        status: JobStatus | None = None,
        model: str | None = None,
        method: str | None = None,
        tags: Sequence[tuple[str, str | None]] = (),
        owner: str | None = None,
    ) -> list[JobRecord]:
        """Jobs accepted before number `before`, newest first; new arrivals never shift a page.

        `tags`: each a name and a value, or None for any value; a job must have all of them.
        """
        query = sa.select(jobs).order_by(jobs.c.seq.desc()).limit(limit)
        if before is not None:
            query = query.where(jobs.c.seq < before)
        filters = ((jobs.c.status, status), (jobs.c.model, model), (jobs.c.method, method), (jobs.c.owner, owner))
        for column, wanted in filters:
            if wanted is not None:
                query = query.where(column == str(wanted))
        for name, value in tags:
            tagged = sa.select(job_tags.c.job_id).where(job_tags.c.name == name)
            query = query.where(jobs.c.job_id.in_(tagged if value is None else tagged.where(job_tags.c.value == value)))
        with self._read() as connection:
            return [record(row) for row in connection.execute(query)]

    def active(self) -> dict[JobStatus, int]:
        """How many jobs wait and how many run."""
        statuses = (JobStatus.PENDING, JobStatus.RUNNING)
        query = (
            sa.select(jobs.c.status, sa.func.count())
            .where(jobs.c.status.in_([each.value for each in statuses]))
            .group_by(jobs.c.status)
        )
        with self._read() as connection:
            return {JobStatus(status): count for status, count in connection.execute(query)}

    def queue_position(self, job: JobRecord) -> int:
        """How many jobs run before a pending one, if no more come."""
        with self._read() as connection:
            return job_queue.position(connection, job)

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

    def save_progress(self, job: JobRecord, progress: Progress) -> None:
        """Remember how far a running job is; the caller bounds how often."""
        with self._write() as connection:
            connection.execute(sa.update(jobs).where(*_held(job)).values(progress=progress.model_dump_json()))

    def complete(self, job: JobRecord, result: Sequence[ResultPart], progress: Progress) -> bool:
        """Store the result durably, then mark the job completed. False if the job was no longer this attempt's."""
        files = self._results.write(job.job_id, job.attempt, result)
        with self._write() as connection:
            moved = self._finish(connection, job, JobStatus.COMPLETED, progress=progress.model_dump_json())
            if moved:
                connection.execute(
                    sa.insert(result_files), [{"job_id": job.job_id, **vars(stored)} for stored in files]
                )
        return moved

    def fail(self, job: JobRecord, error: Problem) -> bool:
        """Mark the job failed, with the reason. False if the job was no longer this attempt's."""
        with self._write() as connection:
            return self._finish(connection, job, JobStatus.FAILED, error=error.model_dump_json())

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

    def cancel(self, job: JobRecord) -> bool:
        """Mark a running job cancelled, now that the device is free of it. False if it was no longer this attempt's."""
        with self._write() as connection:
            return self._finish(connection, job, JobStatus.CANCELLED)

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
        sizes = (
            sa.select(result_files.c.job_id, sa.func.sum(result_files.c.size).label("size"))
            .group_by(result_files.c.job_id)
            .subquery()
        )
        newest = (jobs.c.finished_at.desc(), jobs.c.seq.desc())
        ranked = (
            sa.select(
                jobs.c.job_id,
                jobs.c.finished_at,
                sa.func.row_number().over(order_by=newest).label("rank"),
                sa.func.sum(sizes.c.size).over(order_by=newest).label("bytes"),
            )
            .join(sizes, sizes.c.job_id == jobs.c.job_id)
            .subquery()
        )
        too_many = sa.or_(ranked.c.finished_at < before, ranked.c.rank > keep, ranked.c.bytes > keep_bytes)
        with self._write() as connection:
            expired = list(connection.execute(sa.select(ranked.c.job_id).where(too_many)).scalars())
            if not expired:
                return []
            names = self._forget_files(connection, expired)
            connection.execute(sa.update(jobs).where(jobs.c.job_id.in_(expired)).values(expired_at=self._clock()))
        self._results.remove(names)
        return expired

    def requeue(self, job: JobRecord) -> bool:
        """Put a running job back to pending, because the server stops; it does not count as an attempt."""
        with self._write() as connection:
            return self._move(connection, job, JobStatus.PENDING, attempt=job.attempt - 1, started_at=None)

    def recover(self, max_attempts: int, give_up: Callable[[JobRecord], Problem]) -> list[JobRecord]:
        """After a crash: running jobs go back to pending, or fail once they were started `max_attempts` times; those
        that were to be cancelled are.

        Returns the jobs that were running.
        """
        with self._write() as connection:
            rows = connection.execute(sa.select(jobs).where(jobs.c.status == JobStatus.RUNNING.value)).all()
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
        """The bytes of a result file, checked against their checksum. Raises `StorageFailed`."""
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

    def _finish(self, connection: sa.Connection, job: JobRecord, status: JobStatus, **values: Any) -> bool:
        return self._move(connection, job, status, finished_at=self._clock(), **values)

    def _move(self, connection: sa.Connection, job: JobRecord, status: JobStatus, **values: Any) -> bool:
        """The one place where a claimed job's status changes: only if it is still this attempt, and running."""
        moved = connection.execute(sa.update(jobs).where(*_held(job)).values(status=status.value, **values))
        return moved.rowcount == 1

    def _same_result(self, connection: sa.Connection, submission: Submission) -> str | None:
        """The newest job of the same owner whose stored result this request would have."""
        if submission.reuse_key is None:
            return None
        same = (
            jobs.c.reuse_key == submission.reuse_key,
            jobs.c.status == JobStatus.COMPLETED.value,
            jobs.c.owner == submission.owner,
            jobs.c.expired_at.is_(None),
        )
        query = sa.select(jobs.c.job_id).where(*same).order_by(jobs.c.seq.desc()).limit(1)
        return connection.execute(query).scalar_one_or_none()

    def _results_of(self, connection: sa.Connection, source: str, job_id: str) -> list[ResultFile]:
        """The files of a job, linked for another; none where they are gone, and the job has to be run."""
        rows = connection.execute(sa.select(result_files).where(result_files.c.job_id == source)).all()
        try:
            return self._results.link_all([_file(row) for row in rows], job_id)
        except StorageFailed:
            return []

    def _forget_files(self, connection: sa.Connection, job_ids: list[str]) -> list[str]:
        """Take result files out of the database; they are removed from the disk only once that is committed."""
        named = result_files.c.job_id.in_(job_ids)
        names = list(connection.execute(sa.select(result_files.c.name).where(named)).scalars())
        connection.execute(sa.delete(result_files).where(named))
        return names

    @contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except sa.exc.DBAPIError as error:
            raise StorageFailed(f"The job store cannot be read: {error.orig}.") from error

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        try:
            with self._write_lock, self._engine.begin() as connection:
                yield connection
        except sa.exc.DBAPIError as error:
            raise StorageFailed(f"The job store cannot be written: {error.orig}.") from error


def _file(row: Any) -> ResultFile:
    return ResultFile(row.kind, row.name, row.codec, row.size, row.sha256)


def _held(job: JobRecord) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        jobs.c.seq == job.seq,
        jobs.c.status == JobStatus.RUNNING.value,
        jobs.c.attempt == job.attempt,
    )


def _earlier(row: Any, submission: Submission) -> JobRecord:
    """The job that has this idempotency key already."""
    if row.fingerprint != submission.fingerprint:
        raise KeyReused(
            f"The Idempotency-Key {submission.idempotency_key!r} was used for another request (job {row.job_id}). A "
            "key stands for one request: make a new one."
        )
    return record(row)
