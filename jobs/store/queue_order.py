"""Which job is next, how many run before one, and whether there is room: owners take turns.

Functions of an open connection: the store says when, and in which transaction.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

import sqlalchemy as sa

from jobs.store.records import JobRecord, Submission
from jobs.store.schema import IS_WAITING, jobs
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
    """Whose turn it is: of the owners with waiting jobs, the one whose last turn is longest ago."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._count = 0

    def next(self, connection: sa.Connection, busy_models: Collection[str]) -> int | None:
        """The number of the job to run next. Of one owner's, those on a busy model come last, then the higher priority
        comes first, then the older.
        """
        owners = list(connection.execute(_OWNERS).scalars())
        if not owners:
            return None
        owner = min(owners, key=lambda each: self._last.get(each, 0))
        self._count += 1
        # Who has nothing to run any more is forgotten, and comes first when it has.
        self._last = {each: turn for each, turn in self._last.items() if each in owners} | {owner: self._count}
        first = _FIRST.where(jobs.c.owner == owner)
        # Two looks, each at the head of an index in this order, instead of sorting what waits.
        idle = connection.execute(first.where(jobs.c.model.not_in(busy_models))).scalar_one_or_none()
        return connection.execute(first).scalar_one_or_none() if idle is None else idle


def positions(connection: sa.Connection, waiting: Sequence[JobRecord]) -> dict[int, int]:
    """For each of these pending jobs, by its number, how many run before it if no more come: its owner's in order,
    others' in turn with them.
    """
    if not waiting:
        return {}
    counts = Waiting(connection)
    places = {}
    before, kind = (0, 0), None  # a number, and how many of its owner and priority come before it
    for job in sorted(waiting, key=lambda each: (each.owner, each.request.priority, each.seq)):
        if kind != (kind := (job.owner, job.request.priority)):
            before = (0, 0)
        seq, count = before
        between = {"owner": job.owner, "priority": job.request.priority, "first": seq, "end": job.seq}
        before = (job.seq, count + int(connection.execute(_BETWEEN, between).scalar_one()))
        places[job.seq] = counts.place(*kind, before[1])
    return places


class Waiting:
    """The jobs that wait, counted by owner and priority: how much room there is, and where a new one comes in.

    Read once for a transaction, and kept true as jobs join.
    """

    def __init__(self, connection: sa.Connection) -> None:
        self._counts: defaultdict[str, dict[int, int]] = defaultdict(dict)
        for owner, priority, count in connection.execute(_COUNTS):
            self._counts[owner][priority] = count

    def join(self, submission: Submission) -> int:
        """Take a place for a new job. Returns how many run before it, if no more come. Raises `QueueFull`."""
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
        """How many would run before a job that came now."""
        return self.place(owner, priority, self._counts[owner].get(priority, 0))

    def place(self, owner: str, priority: int, older: int) -> int:
        """How many run before a job behind `older` ones of its owner and priority."""
        ahead = older + sum(count for each, count in self._counts[owner].items() if each > priority)
        # Owners take turns, so each other owner has at most one job more before one than its own owner has.
        return ahead + sum(min(count, ahead + 1) for each, count in self._of_owners().items() if each != owner)

    def _of_owners(self) -> dict[str, int]:
        return {owner: sum(counts.values()) for owner, counts in self._counts.items()}
