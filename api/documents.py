"""Documents that clients receive, made from records; cursors and tags of a listing, parsed."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from jobs.store.records import JobRecord
from jobs.store.shares import StoredShare
from jobs.store.webhook_deliveries import OPEN
from models import (
    AttributionRequest,
    Job,
    JobOutcome,
    JobOutcomes,
    JobStatus,
    Links,
    Outcome,
    Progress,
    Share,
    SharedJob,
    SharedLinks,
    WebhookDelivery,
    WebhookStatus,
)
from problems import InvalidRequest, JobNotFound, NoResult, ResultExpired, ResultNotReady, ServiceError

# Of a request, what its owner wrote for himself, and where he has its end posted.
_PRIVATE_FIELDS = ("notes", "tags", "webhook", "webhook_events")


def _progress(record: JobRecord) -> Progress:
    """The progress of a job; one that has ended needs no more time."""
    if record.finished_at is None:
        return record.progress
    return record.progress.model_copy(update={"eta_seconds": None})


def job_document_of(record: JobRecord) -> Job:
    """Return the wire document of a job."""
    location = f"/attribution/jobs/{record.job_id}"
    return Job(
        job_id=record.job_id,
        status=record.status,
        progress=_progress(record),
        queue_position=record.queue_position,
        created_at=_utc(record.created_at),
        started_at=_utc(record.started_at),
        finished_at=_utc(record.finished_at),
        attempt=record.attempt,
        request=record.request,
        error=record.error,
        cancel_requested=record.cancel_requested,
        reused_from=record.reused_from,
        expired_at=_utc(record.expired_at),
        webhook=_webhook_of(record),
        links=Links(
            self=location,
            results=f"{location}/results",
            events=f"{location}/events",
            cancel=f"{location}/cancel",
        ),
    )


def _webhook_of(record: JobRecord) -> WebhookDelivery | None:
    found = record.webhook
    if found is None:
        return None
    if found.state == OPEN:
        status = WebhookStatus.PENDING if record.status.is_terminal else WebhookStatus.WAITING
    else:  # a damaged row may have any
        status = WebhookStatus(found.state) if found.state in list(WebhookStatus) else WebhookStatus.FAILED
    return WebhookDelivery(
        status=status,
        attempts=found.attempts,
        last_error=found.error,
        next_attempt_at=_utc(found.due_at),
        ended_at=_utc(found.ended_at),
    )


def share_document_of(share: StoredShare) -> Share:
    """Return the wire document of a link."""
    return Share(share_id=share.share_id, created_at=_utc(share.created_at), expires_at=_utc(share.expires_at))


def shared_document_of(record: JobRecord, location: str) -> SharedJob:
    """Return a job as the reader of a link sees it. location: the path of the link."""
    request = record.request and record.request.model_copy(
        update={name: AttributionRequest.model_fields[name].default for name in _PRIVATE_FIELDS}
    )
    error = record.error and record.error.model_copy(update={"instance": None})
    return SharedJob(
        job_id=record.job_id,
        status=record.status,
        progress=_progress(record),
        created_at=_utc(record.created_at),
        started_at=_utc(record.started_at),
        finished_at=_utc(record.finished_at),
        expired_at=_utc(record.expired_at),
        request=request,
        error=error,
        links=SharedLinks(self=f"{location}/job", results=f"{location}/results", aggregators=f"{location}/aggregators"),
    )


def missing_result_error(record: JobRecord, *, partial: bool = False, has_partial: bool = False) -> ServiceError:
    """Return the error that explains why a job has no result.

    partial: whether the client asked for an unfinished result too. has_partial: whether an unfinished result is stored,
    and the client may ask for it here.
    """
    if not record.status.is_terminal:
        return ResultNotReady(
            f"The job is {record.status}; request the result when the status is completed.",
            headers={"Retry-After": "1"},
        )
    if record.expired_at is not None and (partial or record.status is JobStatus.COMPLETED):
        return ResultExpired("The result was removed by the server's retention limits. Submit the job again.")
    more = " The unfinished result is at ?partial=true." if has_partial else ""
    if record.status is JobStatus.CANCELLED:
        return NoResult(f"The job was cancelled, so it has no result. Submit it again.{more}")
    cause = record.error
    return NoResult(f"The job {record.status}: {cause.detail if cause else 'no reason is known'}{more}", cause=cause)


def outcomes_document(errors: Mapping[str, ServiceError | None]) -> JobOutcomes:
    """Return what became of each job of a call on several: its error, or None if it was done."""
    return JobOutcomes(outcomes=[_outcome(job_id, error) for job_id, error in errors.items()])


def _outcome(job_id: str, error: ServiceError | None) -> JobOutcome:
    if error is None:
        return JobOutcome(job_id=job_id, outcome=Outcome.DONE)
    outcome = Outcome.NOT_FOUND if isinstance(error, JobNotFound) else Outcome.CONFLICT
    return JobOutcome(job_id=job_id, outcome=outcome, error=error.to_problem(f"/attribution/jobs/{job_id}"))


def _utc(seconds: float | None) -> Any:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def write_cursor(seq: int) -> str:
    """Return the cursor of the page after the job with this `seq`."""
    return base64.urlsafe_b64encode(str(seq).encode()).decode().rstrip("=")


def read_cursor(cursor: str | None) -> int | None:
    """Return the `seq` that a cursor contains, or None without one. Raises `InvalidRequest`."""
    if cursor is None:
        return None
    try:
        position = int(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except ValueError:
        position = -1
    if not 0 <= position < 2**63:  # the range of SQLite's integers
        raise InvalidRequest("The cursor is not one of this server's: use next_cursor of the previous page.")
    return position


def read_tag(text: str) -> tuple[str, str | None]:
    """Parse `name` or `name:value`; without a value it is None."""
    name, colon, value = text.partition(":")
    return name, value if colon else None
