"""The order of waiting jobs, their places in it, and the limits of the queue. Owners take turns.

Works on an open connection; the store opens the transaction.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa

from jobs.store.records import JobRecord, Submission
from jobs.store.schema import IS_WAITING, jobs
from models import JobStatus
from problems import QueueFull

_COUNTS = (
    sa.select(jobs.c.owner, jobs.c.priority, sa.func.count()).where(IS_WAITING).group_by(jobs.c.owner, jobs.c.priority)
)
_OWNERS = sa.select(jobs.c.owner).where(IS_WAITING).distinct()
_FIRST = sa.select(jobs.c.seq).where(IS_WAITING).order_by(jobs.c.priority.desc(), jobs.c.seq).limit(1)
_BETWEEN = sa.select(sa.func.count()).where(
    IS_WAITING,
    jobs.c.owner == sa.bindparam("owner"),
    jobs.c.priority == sa.bindparam("priority"),
    jobs.c.seq >= sa.bindparam("first"),
    jobs.c.seq < sa.bindparam("end"),
)


class Turns:
    """The turns of owners: of those with waiting jobs, the one whose last turn is longest ago is next."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._count = 0

    def next(self, connection: sa.Connection, busy_models: Collection[str]) -> int | None:
        """Return the `seq` of the job to run next, or None.

        Of one owner's jobs, those whose model is busy come last; then higher priority comes first, then older.
        """
        owners = list(connection.execute(_OWNERS).scalars())
        # Owners without waiting jobs are dropped; they go first when they return.
        self._last = {each: turn for each, turn in self._last.items() if each in owners}
        for owner in sorted(owners, key=lambda each: self._last.get(each, 0)):
            first = _FIRST.where(jobs.c.owner == owner)
            # Two queries that each read the head of an index, instead of one that sorts all waiting jobs.
            seq: int | None = connection.execute(first.where(jobs.c.model.not_in(busy_models))).scalar_one_or_none()
            seq = connection.execute(first).scalar_one_or_none() if seq is None else seq
            if seq is not None:
                self._count += 1
                self._last[owner] = self._count
                return seq
        # What waits has an owner that a query cannot name, because it is no UTF-8.
        return connection.execute(_FIRST).scalar_one_or_none() if owners else None


def claiming(which: sa.ColumnElement[bool], now: float) -> sa.UpdateBase:
    """Return the statement that marks a pending job running and returns its row. now: seconds since the epoch.

    which: the condition that only this job's row meets.
    """
    started = {"status": JobStatus.RUNNING.value, "started_at": now, "progress": None}
    waiting = (which, jobs.c.status == JobStatus.PENDING.value)
    return sa.update(jobs).where(*waiting).values(started | {"attempt": jobs.c.attempt + 1}).returning(jobs)


def suspects(connection: sa.Connection, max_attempts: int) -> Sequence[Any]:
    """Return the rows of the pending jobs that have been started `max_attempts` times, oldest first."""
    last = (IS_WAITING, jobs.c.attempt >= max_attempts)
    return connection.execute(sa.select(jobs).where(*last).order_by(jobs.c.seq)).all()


def positions(connection: sa.Connection, waiting: Sequence[JobRecord]) -> dict[int, int]:
    """Return by `seq` how many jobs run before each of these pending jobs, if no more arrive.

    Jobs of one owner run in order; jobs of other owners take turns with them.
    """
    if not waiting:
        return {}
    counts = Waiting(connection)
    places = {}
    before, kind = (0, 0), None  # a `seq`, and how many jobs of its owner and priority come before it
    for job in sorted(waiting, key=lambda each: (each.owner, each.priority, each.seq)):
        if kind != (kind := (job.owner, job.priority)):
            before = (0, 0)
        seq, count = before
        between = {"owner": job.owner, "priority": job.priority, "first": seq, "end": job.seq}
        before = (job.seq, count + int(connection.execute(_BETWEEN, between).scalar_one()))
        places[job.seq] = counts.place(*kind, before[1])
    return places


class Waiting:
    """Counts of the waiting jobs by owner and priority: for queue limits and the places of new jobs.

    Read once in a transaction, and updated when jobs join.
    """

    def __init__(self, connection: sa.Connection) -> None:
        self._counts: defaultdict[str, dict[int, int]] = defaultdict(dict)
        for owner, priority, count in connection.execute(_COUNTS):
            rank = priority if type(priority) is int else 0  # of a damaged row
            self._counts[owner][rank] = self._counts[owner].get(rank, 0) + count

    def join(self, submission: Submission) -> int:
        """Add a new job. Returns how many jobs run before it, if no more arrive. Raises `QueueFull`."""
        counts = self._of_owners()
        for limit, count, whose in (
            (submission.max_pending, sum(counts.values()), ""),
            (submission.max_pending_of_owner, counts.get(submission.owner, 0), " of this key"),
        ):
            if limit is not None and count >= limit:
                raise QueueFull(f"{limit} jobs{whose} are waiting already; try again later.")
        own, priority = self._counts[submission.owner], submission.request.priority
        place = self.place(submission.owner, priority, own.get(priority, 0))
        own[priority] = own.get(priority, 0) + 1
        return place

    def place_of_next(self, owner: str, priority: int) -> int:
        """Return how many jobs would run before a job submitted now."""
        return self.place(owner, priority, self._counts[owner].get(priority, 0))

    def place(self, owner: str, priority: int, older: int) -> int:
        """Return how many jobs run before a job with `older` older ones of its owner and priority."""
        ahead = older + sum(count for each, count in self._counts[owner].items() if each > priority)
        # Owners take turns: before this job, each other owner runs at most one job more than its own owner does.
        return ahead + sum(min(count, ahead + 1) for each, count in self._of_owners().items() if each != owner)

    def _of_owners(self) -> dict[str, int]:
        return {owner: sum(counts.values()) for owner, counts in self._counts.items()}
