"""Which job is next, how many run before one, and whether there is room: owners take turns.

Functions of an open connection: the store says when, and in which transaction.
"""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from job_records import JobRecord, Submission
from job_schema import jobs
from models import JobStatus
from problems import QueueFull

_WAITING = jobs.c.status == JobStatus.PENDING.value


class Turns:
    """Whose turn it is: of the owners with waiting jobs, the one whose last turn is longest ago."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._count = 0

    def next(self, connection: sa.Connection, busy_models: Collection[str]) -> int | None:
        """The number of the job to run next. Of one owner's, those on a busy model come last, then the higher priority
        comes first, then the older.
        """
        owners = list(connection.execute(sa.select(jobs.c.owner).where(_WAITING).distinct()).scalars())
        if not owners:
            return None
        owner = min(owners, key=lambda each: self._last.get(each, 0))
        self._count += 1
        # Who has nothing to run any more is forgotten, and comes first when it has.
        self._last = {each: turn for each, turn in self._last.items() if each in owners} | {owner: self._count}
        order = (sa.case((jobs.c.model.in_(busy_models), 1), else_=0), jobs.c.priority.desc(), jobs.c.seq)
        query = sa.select(jobs.c.seq).where(_WAITING, jobs.c.owner == owner).order_by(*order).limit(1)
        return connection.execute(query).scalar_one_or_none()


def position(connection: sa.Connection, job: JobRecord) -> int:
    """How many jobs run before a pending one, if no more come: its owner's in order, others' in turn with them."""
    same, higher = jobs.c.priority == job.request.priority, jobs.c.priority > job.request.priority
    before = sa.or_(higher, sa.and_(same, jobs.c.seq < job.seq))
    own = sa.select(sa.func.count()).where(_WAITING, jobs.c.owner == job.owner, before)
    ahead: int = connection.execute(own).scalar_one()
    others = sa.select(sa.func.count()).where(_WAITING, jobs.c.owner != job.owner).group_by(jobs.c.owner)
    # Owners take turns, so each other owner has at most one job more before it than its own owner has.
    return ahead + sum(min(count, ahead + 1) for count in connection.execute(others).scalars())


def check_room(connection: sa.Connection, submission: Submission) -> None:
    """Raises `QueueFull`."""
    waiting = sa.select(sa.func.count()).where(_WAITING)
    for limit, query, whose in (
        (submission.max_pending, waiting, ""),
        (submission.max_pending_of_owner, waiting.where(jobs.c.owner == submission.owner), " of this key"),
    ):
        if limit is not None and int(connection.execute(query).scalar_one()) >= limit:
            raise QueueFull(f"{limit} jobs{whose} are waiting already; try again later.")
