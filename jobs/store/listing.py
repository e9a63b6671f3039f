"""Queries over many jobs: a page of a listing, read from an index in its order; results beyond the retention limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from jobs.store.records import AllOwners, OwnerFilter
from jobs.store.schema import job_tags, jobs, result_files
from jobs.store.search import has_words, is_searchable, job_words
from models import JobStatus


@dataclass(frozen=True)
class Filters:
    """The conditions that listed jobs meet (None: any). `tags`: name and value each, None for any value.

    `search`: a job has all words of it (`jobs.store.search`); a blank one is none.
    """

    status: JobStatus | None = None
    model: str | None = None
    method: str | None = None
    tags: Sequence[tuple[str, str | None]] = ()
    search: str | None = None
    owner: OwnerFilter = field(kw_only=True)


def page_query(filters: Filters, *, limit: int, before: int | None) -> sa.Select[Any]:
    """Return the query for jobs with `seq` < `before`, newest first. New arrivals never shift a page."""
    tagged = [_tagged(filters.owner, name, value) for name, value in filters.tags]
    query: sa.Select[Any] = sa.select(jobs)
    seq: sa.ColumnElement[int] = jobs.c.seq
    # An index has the rows of a search or a tag in the order of the page; each job is looked up by number.
    search = (filters.search or "").strip()
    if search and not is_searchable(search):
        query = query.where(sa.false())
    elif search:
        query = query.join(job_words, jobs.c.seq == job_words.c.rowid).where(has_words(search))
        seq = job_words.c.rowid
    elif tagged:
        first = tagged.pop(0)
        query = query.join(first, jobs.c.seq == first.c.seq)
        seq = first.c.seq
    query = query.order_by(seq.desc()).limit(limit)
    if before is not None:
        query = query.where(seq < before)
    columns = ((jobs.c.status, filters.status), (jobs.c.model, filters.model), (jobs.c.method, filters.method))
    for column, wanted in columns:
        if wanted is not None:
            query = query.where(column == str(wanted))
    query = owned(query, jobs.c.owner, filters.owner)
    for other in tagged:
        query = query.where(sa.exists(sa.select(other.c.seq).where(other.c.job_id == jobs.c.job_id)))
    return query


def owned(query: sa.Select[Any], column: sa.ColumnElement[str], owner: OwnerFilter) -> sa.Select[Any]:
    """Restrict a query to the rows whose `column` is this owner, unless it is `ALL_OWNERS`."""
    return query if isinstance(owner, AllOwners) else query.where(column == owner)


def _tagged(owner: OwnerFilter, name: str, value: str | None) -> sa.Subquery:
    tagged: sa.Select[Any] = sa.select(job_tags.c.seq, job_tags.c.job_id).where(job_tags.c.name == name)
    tagged = owned(tagged, job_tags.c.owner, owner)
    return (tagged if value is None else tagged.where(job_tags.c.value == value)).subquery()


def beyond_limits(before: float, keep: int, keep_bytes: int) -> sa.Select[tuple[str]]:
    """Return the query for the ids of jobs whose results exceed a retention limit.

    before: results stored before this time of the retention clock. keep, keep_bytes: the oldest results beyond this
    number, or beyond this many bytes in all.
    """
    size = result_files.c.size
    # One damaged size must not expire the results of others: a result that exceeds the limit alone is not added up.
    counted = sa.case((sa.and_(sa.func.typeof(size) == "integer", size.between(0, keep_bytes)), size), else_=0)
    sizes = (
        sa.select(
            result_files.c.job_id,
            sa.func.total(counted).label("size"),
            sa.func.max(size > keep_bytes).label("is_too_large"),
        )
        .group_by(result_files.c.job_id)
        .subquery()
    )
    since: sa.ColumnElement[float] = sa.func.coalesce(jobs.c.kept_since, jobs.c.finished_at)
    newest = (since.desc(), jobs.c.seq.desc())
    ranked = (
        sa.select(
            jobs.c.job_id,
            since.label("since"),
            sizes.c.is_too_large,
            sa.func.row_number().over(order_by=newest).label("rank"),
            sa.func.total(sizes.c.size).over(order_by=newest).label("bytes"),
        )
        .join(sizes, sizes.c.job_id == jobs.c.job_id)
        .subquery()
    )
    too_many = sa.or_(ranked.c.since < before, ranked.c.rank > keep, ranked.c.bytes > keep_bytes, ranked.c.is_too_large)
    return sa.select(ranked.c.job_id).where(too_many)
