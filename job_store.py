"""Durable jobs (SQLite) and their result files: the only module that touches the disk for them.

Knows nothing of HTTP, threads that run jobs, or what a result means: a result is named byte strings. A job row is
committed with a full sync before `add` returns; a result is fsynced under a name of its own attempt before the row that
points at it is committed, so a reader never sees half of one. Status moves only by compare-and-set (`_move`).
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from filelock import FileLock, Timeout

from models import AttributionRequest, JobStatus, Problem, Progress, ResultPart
from problems import StorageFailed

metadata = sa.MetaData()
# The columns as the newest migration leaves them; `migrations/` is the authority, and a test compares the two.
jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("job_id", sa.String(32), nullable=False, unique=True),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("model", sa.String(200), nullable=False),
    sa.Column("method", sa.String(100), nullable=False),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("progress", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("started_at", sa.Float),
    sa.Column("finished_at", sa.Float),
)
result_files = sa.Table(
    "result_files",
    metadata,
    sa.Column("job_id", sa.String(32), primary_key=True),
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("codec", sa.String(32), nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
)


@dataclass(frozen=True)
class JobRecord:
    """One row of `jobs`; times are seconds since the epoch."""

    seq: int
    job_id: str
    status: JobStatus
    request: AttributionRequest
    progress: Progress
    error: Problem | None
    attempt: int
    created_at: float
    started_at: float | None
    finished_at: float | None


@dataclass(frozen=True)
class ResultFile:
    """One stored file of a result; `codec` says how its bytes are to be read, `sha256` is of the bytes as stored."""

    kind: str
    name: str
    codec: str
    size: int
    sha256: str


class JobStore:
    """The jobs of one data directory, which it locks for itself.

    Raises `StorageFailed` when the directory is in use by another server, cannot be written, or was written by a newer
    version. Safe to use from many threads.
    """

    def __init__(self, data_dir: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._results = data_dir / "results"
        try:
            self._results.mkdir(parents=True, exist_ok=True)
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
        self._engine = sa.create_engine(f"sqlite:///{data_dir / 'jobs.sqlite3'}", pool_size=16, max_overflow=32)
        sa.event.listen(self._engine, "connect", _configure_connection)
        sa.event.listen(self._engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
        try:
            migrate(self._engine)
            self._sweep_orphans()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the database and let another server have the directory."""
        self._engine.dispose()
        self._lock.release()

    # Jobs

    def add(self, request: AttributionRequest) -> JobRecord:
        """Accept a job: when this returns, it survives the death of the process and of the machine."""
        row = {
            "job_id": uuid.uuid4().hex,
            "status": JobStatus.PENDING.value,
            "model": request.model,
            "method": request.method,
            "request": request.model_dump_json(),
            "attempt": 0,
            "created_at": self._clock(),
        }
        with self._write() as connection:
            stored = connection.execute(sa.insert(jobs).values(row).returning(jobs)).one()
        return _record(stored)

    def get(self, job_id: str) -> JobRecord | None:
        """The job, or None."""
        with self._read() as connection:
            row = connection.execute(sa.select(jobs).where(jobs.c.job_id == job_id)).one_or_none()
        return None if row is None else _record(row)

    def page(
        self,
        *,
        limit: int,
        before: int | None = None,
        status: JobStatus | None = None,
        model: str | None = None,
        method: str | None = None,
    ) -> list[JobRecord]:
        """Jobs accepted before number `before`, newest first; new arrivals never shift a page."""
        query = sa.select(jobs).order_by(jobs.c.seq.desc()).limit(limit)
        if before is not None:
            query = query.where(jobs.c.seq < before)
        for column, wanted in ((jobs.c.status, status), (jobs.c.model, model), (jobs.c.method, method)):
            if wanted is not None:
                query = query.where(column == str(wanted))
        with self._read() as connection:
            return [_record(row) for row in connection.execute(query)]

    def queue_position(self, seq: int) -> int:
        """How many pending jobs were accepted before job number `seq`."""
        query = sa.select(sa.func.count()).where(jobs.c.status == JobStatus.PENDING.value, jobs.c.seq < seq)
        with self._read() as connection:
            return int(connection.execute(query).scalar_one())

    def claim(self, busy_models: Collection[str] = ()) -> JobRecord | None:
        """Take the next pending job: the oldest one, those on a model that is busy on this device after the others."""
        oldest = (
            sa.select(jobs.c.seq)
            .where(jobs.c.status == JobStatus.PENDING.value)
            .order_by(sa.case((jobs.c.model.in_(busy_models), 1), else_=0), jobs.c.seq)
            .limit(1)
            .scalar_subquery()
        )
        statement = (
            sa.update(jobs)
            .where(jobs.c.seq == oldest, jobs.c.status == JobStatus.PENDING.value)
            .values(
                status=JobStatus.RUNNING.value,
                attempt=jobs.c.attempt + 1,
                started_at=self._clock(),
                progress=None,
            )
            .returning(jobs)
        )
        with self._write() as connection:
            row = connection.execute(statement).one_or_none()
        return None if row is None else _record(row)

    def save_progress(self, job: JobRecord, progress: Progress) -> None:
        """Remember how far a running job is; the caller bounds how often."""
        with self._write() as connection:
            connection.execute(sa.update(jobs).where(*_held(job)).values(progress=progress.model_dump_json()))

    def complete(self, job: JobRecord, result: Sequence[ResultPart], progress: Progress) -> bool:
        """Store the result durably, then mark the job completed. False if the job was no longer this attempt's."""
        files = [self._write_file(job, part) for part in result]
        _sync_directory(self._results)
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

    def requeue(self, job: JobRecord) -> bool:
        """Put a running job back to pending, because the server stops; it does not count as an attempt."""
        with self._write() as connection:
            return self._move(connection, job, JobStatus.PENDING, attempt=job.attempt - 1, started_at=None)

    def recover(self, max_attempts: int, give_up: Callable[[JobRecord], Problem]) -> list[JobRecord]:
        """After a crash: running jobs go back to pending, or fail once they were started `max_attempts` times.

        Returns the jobs that were running.
        """
        with self._write() as connection:
            rows = connection.execute(sa.select(jobs).where(jobs.c.status == JobStatus.RUNNING.value)).all()
            for job in map(_record, rows):
                if job.attempt < max_attempts:
                    self._move(connection, job, JobStatus.PENDING, started_at=None)
                else:
                    error = give_up(job).model_dump_json()
                    self._finish(connection, job, JobStatus.FAILED, error=error)
        return [_record(row) for row in rows]

    # Results

    def files(self, job_id: str) -> dict[str, ResultFile]:
        """The stored files of a completed job, by kind."""
        query = sa.select(result_files).where(result_files.c.job_id == job_id)
        with self._read() as connection:
            rows = connection.execute(query).all()
        return {row.kind: ResultFile(row.kind, row.name, row.codec, row.size, row.sha256) for row in rows}

    def read(self, stored: ResultFile) -> bytes:
        """The bytes of a result file, checked against their checksum.

        Raises `StorageFailed` if the file is gone or damaged.
        """
        try:
            content = (self._results / stored.name).read_bytes()
        except OSError as error:
            raise StorageFailed(f"The result file {stored.name} cannot be read: {error.strerror}.") from error
        if hashlib.sha256(content).hexdigest() != stored.sha256:
            raise StorageFailed(f"The result file {stored.name} is damaged; submit the job again.")
        return content

    def is_writable(self) -> bool:
        """Whether a job could be accepted now (for readiness)."""
        try:
            with self._write() as connection:
                connection.execute(sa.update(jobs).where(sa.false()).values(attempt=0))
            return os.access(self._results, os.W_OK)
        except (sa.exc.SQLAlchemyError, StorageFailed):
            return False

    # Inside

    def _finish(self, connection: sa.Connection, job: JobRecord, status: JobStatus, **values: Any) -> bool:
        return self._move(connection, job, status, finished_at=self._clock(), **values)

    def _move(self, connection: sa.Connection, job: JobRecord, status: JobStatus, **values: Any) -> bool:
        """The one place where a claimed job's status changes: only if it is still this attempt, and running."""
        moved = connection.execute(sa.update(jobs).where(*_held(job)).values(status=status.value, **values))
        return moved.rowcount == 1

    def _write_file(self, job: JobRecord, part: ResultPart) -> ResultFile:
        # The attempt is in the name, so that two attempts can never mix their files.
        name = f"{job.job_id}.{job.attempt}.{part.kind}"
        temporary = self._results / f".{name}.{uuid.uuid4().hex}.part"
        try:
            with temporary.open("wb") as file:
                file.write(part.content)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self._results / name)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise StorageFailed(f"The result could not be stored: {error.strerror}.") from error
        digest = hashlib.sha256(part.content).hexdigest()
        return ResultFile(part.kind, name, part.codec, len(part.content), digest)

    def _sweep_orphans(self) -> None:
        """Remove files that no row names: of attempts that died between their file and their row."""
        with self._read() as connection:
            known = set(connection.execute(sa.select(result_files.c.name)).scalars())
        for file in self._results.iterdir():
            if file.name not in known:
                file.unlink()

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


def migrate(engine: sa.Engine) -> None:
    """Bring the database to this version's schema. Raises `StorageFailed` for one that a newer version wrote."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise StorageFailed(
                f"The job store was written by a newer version of this service ({error}). Upgrade the service, or give "
                "it another --data-dir."
            ) from error


def schema_version() -> str:
    """The newest migration's revision."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return str(ScriptDirectory.from_config(config).get_current_head())


def with_progress(job: JobRecord, progress: Progress) -> JobRecord:
    """The record with fresher progress than the row's."""
    return replace(job, progress=progress)


def _held(job: JobRecord) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        jobs.c.seq == job.seq,
        jobs.c.status == JobStatus.RUNNING.value,
        jobs.c.attempt == job.attempt,
    )


def _record(row: Any) -> JobRecord:
    return JobRecord(
        seq=row.seq,
        job_id=row.job_id,
        status=JobStatus(row.status),
        request=AttributionRequest.model_validate_json(row.request),
        progress=Progress.model_validate_json(row.progress) if row.progress else Progress(),
        error=Problem.model_validate_json(row.error) if row.error else None,
        attempt=row.attempt,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )


def _configure_connection(connection: Any, _record: object) -> None:
    # SQLAlchemy emits BEGIN itself (above), so that sqlite3's own implicit transactions stay out of the way.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        connection.execute(f"PRAGMA {pragma}").close()


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
