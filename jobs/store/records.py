"""A job as a row of the store, a submission before it is one, and whose jobs a caller may see."""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass
from typing import Any, Literal

from models import AttributionRequest, JobStatus, Problem, Progress


class AllOwners(enum.Enum):
    """The explicit choice to see the jobs of every owner. A type of its own, so that no owner's name equals it."""

    ALL_OWNERS = "all owners"


ALL_OWNERS: Literal[AllOwners.ALL_OWNERS] = AllOwners.ALL_OWNERS
OwnerFilter = str | AllOwners  # whose jobs are visible: never optional, so that it cannot be forgotten


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
    cancel_requested: bool = False
    expired_at: float | None = None  # when retention removed its result
    owner: str = ""
    reused_from: str | None = None
    queue_position: int | None = None  # of a pending job, if it was looked up

    @property
    def kind(self) -> tuple[str, str]:
        """Model and method names: jobs of one kind take about equally long."""
        return self.request.model, ",".join(self.request.method_names)


@dataclass(frozen=True)
class Submission:
    """A job to accept, and the limits that may refuse it (None: no limit)."""

    request: AttributionRequest
    idempotency_key: str | None = None
    owner: str = ""
    reuse_key: str | None = None  # equal for requests whose results are equal
    max_pending: int | None = None  # waiting jobs of all owners
    max_pending_of_owner: int | None = None  # waiting jobs of this owner

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the request: equal for equal requests."""
        return hashlib.sha256(self.request.model_dump_json().encode()).hexdigest()


def record(row: Any) -> JobRecord:
    """Return a row of the table `jobs` as a record."""
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
        cancel_requested=row.cancel_requested,
        expired_at=row.expired_at,
        owner=row.owner,
        reused_from=row.reused_from,
    )
