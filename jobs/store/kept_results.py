"""Which results are kept and which are removed: retention limits, deleted jobs, and leftovers of killed attempts."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager

import sqlalchemy as sa
import structlog

from jobs.store import leftovers
from jobs.store.listing import beyond_limits
from jobs.store.result_files import ResultFiles
from jobs.store.retention_clock import RetentionClock
from jobs.store.rows import is_number
from jobs.store.schema import jobs, removed_files, result_files, retention_clock

Connections = Callable[[], AbstractContextManager[sa.Connection]]
_AT_ONCE = 100  # results removed in one transaction
log = structlog.get_logger(__name__)


class KeptResults:
    """The rows of result files, and the files beside them. Made once, when the store is opened.

    Then it finishes removals that a crash cut off, and clears the results folder of files that no row names. read,
    write: open a connection of the store. clock: seconds since the epoch. monotonic: seconds.
    """

    def __init__(
        self,
        results: ResultFiles,
        read: Connections,
        write: Connections,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._results = results
        self._read = read
        self._write = write
        self._clock = clock
        self._retention_clock = RetentionClock(self._start(), clock, monotonic)
        self._remove_forgotten()
        self._clear_leftovers()

    def now(self) -> float:
        """Return the time of the retention clock, from which a result ages."""
        return self._retention_clock.now()

    def save_clock(self) -> None:
        """Store the time of the retention clock, where it continues at the next start."""
        values = {"id": 1, "seconds": self.now()}
        with self._write() as connection:
            connection.execute(sa.insert(retention_clock).prefix_with("OR REPLACE").values(values))

    def expire(self, *, max_age: float, keep: int, keep_bytes: int) -> list[str]:
        """Remove results older than `max_age` seconds, and the oldest beyond a number or an amount of bytes.

        Their jobs stay, marked as expired. Age is measured by the retention clock. Files that were set aside have the
        same limits. Returns the ids of the jobs.
        """
        now = self.now()
        before = now - max_age
        self._remove_forgotten()
        self.save_clock()
        with self._read() as connection:
            beyond = list(connection.execute(beyond_limits(before, keep, keep_bytes)).scalars())
        expired: list[str] = []
        # In small transactions, so that other writers do not wait long for the lock.
        for some in (beyond[at : at + _AT_ONCE] for at in range(0, len(beyond), _AT_ONCE)):
            with self._write() as connection:
                still = jobs.c.job_id.in_(some)
                gone = sa.update(jobs).where(still).values(expired_at=self._clock()).returning(jobs.c.job_id)
                ids = list(connection.execute(gone).scalars())
                names = self.forget(connection, ids)
            self._results.remove(names)
            expired += ids
        if trimmed := leftovers.trim(self._results.directory, before=before, keep=keep, keep_bytes=keep_bytes):
            log.warning("set_aside_results_removed", count=trimmed)
        return expired

    def forget(self, connection: sa.Connection, job_ids: list[str]) -> list[str]:
        """Delete the rows of result files. Returns their names; the caller removes the files after the commit.

        `removed_files` has the names until the files are known to be gone, also if the process dies before that.
        """
        named = result_files.c.job_id.in_(job_ids)
        rows = connection.execute(sa.select(result_files.c.job_id, result_files.c.name).where(named)).all()
        # A damaged row may name anything; a name that begins with the job's id is a file of this job.
        names = [row.name for row in rows if str(row.name).startswith(f"{row.job_id}.") and "/" not in row.name]
        if names:
            values = [{"name": name} for name in names]
            connection.execute(sa.insert(removed_files).prefix_with("OR IGNORE"), values)
        connection.execute(sa.delete(result_files).where(named))
        return names

    def _remove_forgotten(self) -> None:
        """Remove the files in `removed_files`, then, when their removal is durable, their names."""
        with self._read() as connection:
            names = list(connection.execute(sa.select(removed_files.c.name)).scalars())
        gone = self._results.remove(names)
        if not gone or not self._results.sync():
            return  # at the next sweep
        for some in (gone[at : at + _AT_ONCE] for at in range(0, len(gone), _AT_ONCE)):
            with self._write() as connection:
                connection.execute(sa.delete(removed_files).where(removed_files.c.name.in_(some)))

    def _clear_leftovers(self) -> None:
        """Remove what killed attempts left in the results folder, and set aside what the store does not know."""
        with self._read() as connection:
            known = set(connection.execute(sa.select(result_files.c.name)).scalars())
        leftovers.clear(self._results.directory, known, self._job_states, self.now())

    def _job_states(self, job_ids: Collection[str]) -> dict[str, leftovers.JobState]:
        columns = (jobs.c.job_id, jobs.c.status, jobs.c.attempt, jobs.c.expired_at)
        wanted, found = list(job_ids), {}
        for some in (wanted[at : at + _AT_ONCE] for at in range(0, len(wanted), _AT_ONCE)):
            with self._read() as connection:
                for row in connection.execute(sa.select(*columns).where(jobs.c.job_id.in_(some))):
                    attempt = row.attempt if type(row.attempt) is int else 0
                    found[row.job_id] = leftovers.JobState(row.status, attempt, row.expired_at is not None)
        return found

    def _start(self) -> float:
        """Return where the retention clock continues; in a store without one, at the newest job, or now if earlier."""
        newest = sa.select(jobs.c.created_at).order_by(jobs.c.seq.desc()).limit(1)
        with self._read() as connection:
            stored = connection.execute(sa.select(retention_clock.c.seconds)).scalars().first()
            latest = connection.execute(newest).scalar_one_or_none()
        if is_number(stored):
            return float(stored)
        return min(self._clock(), float(latest)) if is_number(latest) else self._clock()
