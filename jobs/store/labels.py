"""What a job is called: its name, notes and tags, which its owner may change; and which models, methods and tags exist.

They are part of the stored request. Tags have rows besides, by which listings filter, and so have the words of a search
(`jobs.store.search`). Works on an open connection; the store opens the transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import sqlalchemy as sa

from jobs.store import search
from jobs.store.records import JobRecord
from jobs.store.rows import text
from jobs.store.schema import job_tags, jobs
from models import JobFacets, JobUpdate
from problems import InvalidRequest

_MOST_VALUES = 100  # of a kind, and of a tag


def add_tags(connection: sa.Connection, accepted: Iterable[JobRecord]) -> None:
    """Store the tags of new jobs, by which they are found."""
    rows = [
        {"job_id": job.job_id, "name": name, "value": value, "seq": job.seq, "owner": job.owner}
        for job in accepted
        for name, value in job.accepted_request.tags.items()
    ]
    if rows:
        connection.execute(sa.insert(job_tags), rows)


def change(connection: sa.Connection, job: JobRecord, update: JobUpdate) -> None:
    """Change the name, notes or tags of a stored job. Raises `InvalidRequest` for too many tags, and if the job cannot
    be read.
    """
    if job.request is None or job.unreadable:
        raise InvalidRequest("The stored job cannot be read, so it cannot be changed. Its error says why; delete it.")
    try:
        request = update.applied_to(job.request)
    except ValueError as error:
        raise InvalidRequest.at("/tags", f"{error}.") from error
    connection.execute(sa.update(jobs).where(jobs.c.seq == job.seq).values(request=request.model_dump_json()))
    if request.tags != job.request.tags:
        connection.execute(sa.delete(job_tags).where(job_tags.c.job_id == job.job_id))
        add_tags(connection, [replace(job, request=request)])
    search.change(connection, job.seq, search.words_of(job.job_id, request.model_dump(include=search.FIELDS)))


def facets(connection: sa.Connection, owner: str) -> JobFacets:
    """Return the values by which one owner's jobs can be filtered: some seeks of an index for each value."""
    of_jobs, of_tags = (jobs.c.owner == owner,), (job_tags.c.owner == owner,)
    names = _distinct(connection, job_tags.c.name, *of_tags)
    return JobFacets(
        models=_distinct(connection, jobs.c.model, *of_jobs),
        methods=_distinct(connection, jobs.c.method, *of_jobs),
        tags={name: _distinct(connection, job_tags.c.value, *of_tags, job_tags.c.name == name) for name in names},
    )


def _distinct(connection: sa.Connection, column: sa.Column[str], *where: sa.ColumnElement[bool]) -> list[str]:
    """Return the values of a column in order. Each is found by one seek behind the one before it, whereas DISTINCT
    would read the whole index.
    """
    first = sa.select(sa.func.min(column).label("value"), sa.literal(1).label("number")).where(*where)
    found = first.cte("found", recursive=True)
    following = sa.select(sa.func.min(column)).where(*where, column > found.c.value).scalar_subquery()
    more = sa.select(following, found.c.number + 1).where(found.c.value.is_not(None), found.c.number < _MOST_VALUES)
    found = found.union_all(more)
    rows = connection.execute(sa.select(found.c.value).where(found.c.value.is_not(None)))
    return [text(value) for value in rows.scalars()]
