"""A job as a row of the store, and what is submitted to become one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from models import AttributionRequest, JobStatus, Problem, Progress


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
    expired_at: float | None = None  # when its result was removed to make room
    owner: str = ""
    reused_from: str | None = None
    queue_position: int | None = None  # of a pending job, where it was looked up

    @property
    def kind(self) -> tuple[str, str]:
        """What jobs have in common that take about the same time: model and methods."""
        return self.request.model, ",".join(self.request.method_names)


@dataclass(frozen=True)
class Submission:
    """A job to accept, and what may stand in its way."""

    request: AttributionRequest
    idempotency_key: str | None = None
    owner: str = ""
    reuse_key: str | None = None  # equal for requests that must have the same result
    max_pending: int | None = None
    max_pending_of_owner: int | None = None

    @property
    def fingerprint(self) -> str:
        """Equal for equal requests."""
        return hashlib.sha256(self.request.model_dump_json().encode()).hexdigest()


def record(row: Any) -> JobRecord:
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
