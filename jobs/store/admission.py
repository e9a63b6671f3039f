"""Decides which submissions become jobs: idempotency keys and queue limits.

Several submissions are decided in one transaction, in their order, with the outcome that each would have alone. Works
on an open connection; the store opens the transaction.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import sqlalchemy as sa

from jobs.store import labels, search
from jobs.store.queue_order import Waiting
from jobs.store.records import JobRecord, Submission
from jobs.store.result_files import ResultFile
from jobs.store.rows import record
from jobs.store.schema import jobs, result_files, webhook_deliveries
from jobs.store.webhook_deliveries import new_row
from models import JobStatus, Progress, Stage
from problems import KeyReused, ServiceError

_STORED = Progress(stage=Stage.SAVING, fraction=1.0)
_EARLIER = sa.select(jobs).where(
    jobs.c.owner == sa.bindparam("owner"), jobs.c.idempotency_key.in_(sa.bindparam("keys", expanding=True))
)
_INSERT = sa.insert(jobs).returning(jobs.c.job_id, jobs.c.seq)


@dataclass(frozen=True)
class Candidate:
    """A submission with its future job id. With `files` (links to a stored result) the job is completed at once."""

    submission: Submission
    reused_from: str | None = None
    files: Sequence[ResultFile] = ()
    job_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @cached_property
    def words(self) -> str:
        """The words by which the job will be found."""
        return search.words_of(self.job_id, self.submission.request.model_dump(include=search.FIELDS))


def admit(
    connection: sa.Connection, candidates: Sequence[Candidate], now: float, kept_since: float
) -> list[JobRecord | ServiceError]:
    """Store the candidates as jobs. Returns the job of each, or its error: `KeyReused` or `QueueFull`.

    If the idempotency key was used before, the job is the earlier one, whose id differs from the candidate's. now:
    seconds since the epoch. kept_since: the time of the retention clock, for jobs that have their result at once.
    """
    holders = _holders(connection, candidates)
    waiting = Waiting(connection)
    outcomes: list[JobRecord | ServiceError] = []
    accepted: list[tuple[Candidate, JobRecord]] = []
    for each in candidates:
        try:
            job = _decide(each, holders, waiting, now)
        except ServiceError as error:
            outcomes.append(error)
            continue
        outcomes.append(job)
        if job.job_id == each.job_id:
            accepted.append((each, job))
            holders[_key(each.submission)] = (each.submission.fingerprint, job)
    numbers = _insert(connection, accepted, kept_since)
    return [
        replace(each, seq=numbers.get(each.job_id, each.seq)) if isinstance(each, JobRecord) else each
        for each in outcomes
    ]


_Key = tuple[str, str | None]
_Holders = dict[_Key, tuple[str, JobRecord]]  # by key: the fingerprint of its request, and its job


def _key(submission: Submission) -> _Key:
    return submission.owner, submission.idempotency_key


def _holders(connection: sa.Connection, candidates: Sequence[Candidate]) -> _Holders:
    """Return the stored jobs with the candidates' keys."""
    keys: defaultdict[str, list[str]] = defaultdict(list)
    for each in candidates:
        if each.submission.idempotency_key is not None:
            keys[each.submission.owner].append(each.submission.idempotency_key)
    rows = [row for owner, some in keys.items() for row in connection.execute(_EARLIER, {"owner": owner, "keys": some})]
    return {(row.owner, row.idempotency_key): (row.fingerprint, record(row)) for row in rows}


def _decide(candidate: Candidate, holders: _Holders, waiting: Waiting, now: float) -> JobRecord:
    submission = candidate.submission
    if submission.idempotency_key is not None and (holder := holders.get(_key(submission))):
        fingerprint, job = holder
        if fingerprint != submission.fingerprint:
            raise KeyReused(
                f"The Idempotency-Key {submission.idempotency_key!r} was used for another request (job {job.job_id}). "
                "Use a new key for each request."
            )
        return job
    if candidate.files:
        ended: dict[str, Any] = {"status": JobStatus.COMPLETED, "progress": _STORED, "started_at": now}
        ended |= {"finished_at": now, "reused_from": candidate.reused_from}
    else:
        ended = {"status": JobStatus.PENDING, "progress": Progress(), "started_at": None, "finished_at": None}
        ended |= {"queue_position": waiting.join(submission)}
    return JobRecord(
        seq=0,
        job_id=candidate.job_id,
        model=submission.request.model,
        method=",".join(submission.request.method_names),
        priority=submission.request.priority,
        request=submission.request,
        error=None,
        attempt=0,
        created_at=now,
        owner=submission.owner,
        **ended,
    )


def _insert(
    connection: sa.Connection, accepted: Sequence[tuple[Candidate, JobRecord]], kept_since: float
) -> dict[str, int]:
    """Store the new jobs with their tags, words, files and webhooks. Returns `seq` by job id."""
    if not accepted:
        return {}
    numbers = connection.execute(_INSERT, [_row(candidate, job, kept_since) for candidate, job in accepted])
    found = {row.job_id: row.seq for row in numbers}
    labels.add_tags(connection, [replace(job, seq=found[job.job_id]) for _, job in accepted])
    search.add(connection, {found[job.job_id]: candidate.words for candidate, job in accepted})
    files = [{"job_id": job.job_id, **vars(file)} for candidate, job in accepted for file in candidate.files]
    if files:
        connection.execute(sa.insert(result_files), files)
    webhooks = [
        new_row(found[job.job_id], candidate.submission.request)
        for candidate, job in accepted
        if candidate.submission.request.webhook
    ]
    if webhooks:
        connection.execute(sa.insert(webhook_deliveries), webhooks)
    return found


def _row(candidate: Candidate, job: JobRecord, kept_since: float) -> dict[str, Any]:
    submission = candidate.submission
    return {
        "job_id": job.job_id,
        "status": job.status.value,
        "model": job.model,
        "method": job.method,
        "request": submission.stored_request,
        "progress": job.progress.model_dump_json() if candidate.files else None,
        "attempt": job.attempt,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "cancel_requested": False,
        "idempotency_key": submission.idempotency_key,
        "fingerprint": submission.fingerprint if submission.idempotency_key is not None else None,
        "owner": job.owner,
        "priority": job.priority,
        "reuse_key": submission.reuse_key,
        "reused_from": job.reused_from,
        "kept_since": kept_since if candidate.files else None,
    }
