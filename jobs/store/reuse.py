"""Answers a submission with `reuse` from a stored result of the same request, if there is one and it is intact."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import sqlalchemy as sa

from jobs.store.admission import Candidate
from jobs.store.kept_results import Connections
from jobs.store.result_files import ResultFile, ResultFiles
from jobs.store.schema import jobs
from models import JobStatus
from problems import StorageFailed


def with_stored_result(
    candidate: Candidate, read: Connections, files_of: Callable[[str], Mapping[str, ResultFile]], results: ResultFiles
) -> Candidate:
    """Return the candidate with links to the newest stored result of the same request and owner, if there is one.

    files_of: returns the stored files of a job, by kind.
    """
    submission = candidate.submission
    if submission.reuse_key is None:
        return candidate
    same = (
        jobs.c.reuse_key == submission.reuse_key,
        jobs.c.status == JobStatus.COMPLETED.value,
        jobs.c.owner == submission.owner,
        jobs.c.expired_at.is_(None),
    )
    with read() as connection:
        newest = sa.select(jobs.c.job_id).where(*same).order_by(jobs.c.seq.desc()).limit(1)
        source = connection.execute(newest).scalar_one_or_none()
    if source is None:
        return candidate
    try:
        files = results.link_all(tuple(files_of(source).values()), candidate.job_id)
    except StorageFailed:  # missing or damaged: run the job instead
        return candidate
    return replace(candidate, reused_from=source, files=files)
